"""Where and when it is computed: the only package that imports ray. One module a job, `python -m jobs.NAME --help`."""
