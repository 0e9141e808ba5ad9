"""Training of teachers and students, from batches to weights. Does not use Ray."""
