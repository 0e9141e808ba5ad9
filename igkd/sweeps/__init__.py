"""Sweeps: many students of one store, as a grid (jobs.ablate) or as a search (jobs.tune).

A sweep is a directory. `students/NAME` are run directories as jobs.distill makes them. A `result.json` in one means that the run is
finished, and is its only record, so that after any kill the same command knows what is done. `rows.jsonl` has the same results in one file,
with a line for each as soon as it exists. `status.json` is written regularly by the driver (`igkd sweeps status DIR` reads it).
"""
