"""Measures of networks, of their maps, and of differences between runs. Draws nothing."""
