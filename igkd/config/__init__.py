"""Settings and their defaults, as dataclasses: one file a job. Computes nothing."""
