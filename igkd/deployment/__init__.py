"""A file for a device, and how fast it is."""
