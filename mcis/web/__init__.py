"""The server of `mcis serve`: a page and a REST API over one predictor. The extra `web` has what it needs."""
