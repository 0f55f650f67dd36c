"""HTTP routes of the API server."""
