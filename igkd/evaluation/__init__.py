"""What a network, a map and a difference between two runs are worth. Draws nothing."""
