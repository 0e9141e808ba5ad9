"""Networks: build, name, count, save, load. Trains nothing."""
