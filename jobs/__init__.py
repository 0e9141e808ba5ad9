"""Where and when it is computed: the only package that imports ray. One module a job, `python -m jobs.NAME --help`."""

from jobs.backend.ray_insides import set_environment

set_environment()  # before anything imports ray, which reads some of it then
