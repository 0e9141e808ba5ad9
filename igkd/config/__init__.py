"""Settings and their defaults, as dataclasses, one file for each job. Computes nothing."""
