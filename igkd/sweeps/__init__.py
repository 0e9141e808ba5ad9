"""Sweeps: many students of one store, as a grid (jobs.ablate) or as a search (jobs.tune).

A sweep is a directory. `students/NAME` are run directories as jobs.distill makes them; a `result.json` in one is a finished run and the
only record of it, so that whatever is killed, the same command knows what is done. `rows.jsonl` has the same results as one file, a
line as soon as each exists; `status.json` is the driver's pulse (`igkd sweeps status DIR`).
"""
