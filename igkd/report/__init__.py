"""HTML pages, charts and tables made from rows of results."""
