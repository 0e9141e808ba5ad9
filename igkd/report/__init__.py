"""From rows of results to pages."""
