"""Where and when it is computed: the only package that imports ray. One module a job, `python -m jobs.NAME --help`."""

import os

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune's tables and tracebacks say in many words what `jobs.backend.sweep_progress.Keeper` says in few; its loggers' files have them all.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Ray Train's watcher of preempted nodes only tells training loops that ask, which ours do not, and prints an error at each start (2.60).
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# A Ray of our own listens beyond loopback; Ray makes the token, in ~/.ray. A cluster that we are told of has its own way.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
