"""Networks: building, naming, counting, saving, loading and tapping them. Trains nothing."""
