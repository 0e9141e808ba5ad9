"""Running many students on Ray Tune: one process a run, as many at a time as fit, with a ledger of what is done.

Tune places the runs, retries them, stops those that lag and logs them for TensorBoard. What is done is known from the run directories
alone, not from Tune's snapshots: these are some seconds old when a driver is killed, and are pickles.
"""

import datetime
import gc
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping

import ray
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from igkd.base.errors import UserError
from igkd.sweeps.ledger import Ledger
from jobs.backend.halving import Halving
from jobs.backend.one_trial import TRIES, Settings, Work, train_cell
from jobs.backend.sweep_progress import Interruption, Keeper, settings_of_trial

logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune hands the driver's AWS keys to its runs in a runtime environment, which Ray writes to its log. They have those of their node.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update({name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})


def run_trials(
    ledger: Ledger,
    work: Work,
    space: Settings | Searcher,
    resources: Mapping[str, float],
    *,
    seconds: float | None = None,
    halving: Halving | None = None,
    samples: int = 1,
    at_once: int | None = None,
) -> None:
    """Run what Tune says until all is done, or until the time is up.

    Args:
        space: Tune's space, a grid; or what proposes settings from a space of its own.
        resources: of one run.
        seconds: after which all runs are stopped; their states are those of their last epochs.
        halving: stops what lags behind.
        samples: how many settings to propose.
        at_once: how many of them before the first results are known.
    """
    trainable = ray.tune.with_parameters(train_cell, work=work)
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, dict(resources)),
        param_space={} if isinstance(space, Searcher) else space,
        tune_config=ray.tune.TuneConfig(
            search_alg=space if isinstance(space, Searcher) else None,
            scheduler=halving,
            num_samples=samples,
            max_concurrent_trials=at_once,
            time_budget_s=seconds,
            reuse_actors=False,  # a process that has had one run keeps gigabytes of it: torch's threads come and go with their memory
            trial_dirname_creator=lambda trial: work.cell_of(settings_of_trial(trial)).name,
        ),
        run_config=ray.tune.RunConfig(
            name=datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S"),
            storage_path=str(ledger.root.resolve() / "tune"),
            failure_config=ray.tune.FailureConfig(max_failures=TRIES - 1),
            callbacks=[Keeper(ledger, work, halving), *mlflow_logger(ledger.root.name)],
            stop=Interruption(),
            verbose=0,
        ),
    ).fit()


def persist(attempt: Callable[[], None]) -> None:
    """Run Tune, and again for what is left where a run was killed for its memory, which Tune 2.60 takes for its own end.

    Raises:
        UserError: it happened too often.
    """
    for n in range(1, TRIES + 1):
        try:
            return attempt()
        except RuntimeError as error:
            if not isinstance(error.__cause__ or error.__context__, ray.exceptions.OutOfMemoryError):
                raise
            print(f"sweep: a run was killed because the node has too little memory (time {n} of {TRIES})", flush=True)
        gc.collect()  # the controller's actors
    raise UserError("the nodes have too little memory for so many runs at a time; give Ray fewer processors, or --runs-per-gpu less")


def mlflow_logger(experiment: str) -> list[ray.tune.Callback]:
    """Tune's logger for MLflow, where it is installed and MLFLOW_TRACKING_URI says where to log."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or importlib.util.find_spec("mlflow") is None:
        return []
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(tracking_uri=uri, experiment_name=experiment)]
