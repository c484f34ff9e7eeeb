"""The server: a page to drop scans on, and a REST API."""
