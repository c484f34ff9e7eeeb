"""The HTTP server: a page and a REST API."""
