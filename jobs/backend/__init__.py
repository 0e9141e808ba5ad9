"""What the jobs share: starting Ray, running training loops, streams and sweeps on it."""
