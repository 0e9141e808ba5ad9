"""From a batch to weights. Knows nothing of Ray."""
