"""Runs many students on Ray Tune, one process each, as many at a time as fit, with a ledger of what is done.

Tune schedules the runs, retries them, stops those that fall behind and logs them for TensorBoard. Which runs are done is known from the run
directories alone, not from Tune's snapshots: these may be some seconds old when a driver is killed, and are pickles.
"""

import datetime
import gc
from collections.abc import Callable, Mapping

import ray
import ray.tune
from ray.tune.search import Searcher

from igkd.base.errors import UserError
from igkd.sweeps.ledger import Ledger
from jobs.backend.halving import Halving
from jobs.backend.one_trial import TRIES, Settings, Work, train_cell
from jobs.backend.ray_insides import keep_aws_keys_from_tune, silence_ray_tune
from jobs.backend.sweep_progress import Interruption, Keeper, begun_history, settings_of_trial
from jobs.backend.trackers import trackers
from jobs.backend.waiting import say_if_waiting


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
    """Run trials until all are done, or until the time is up.

    Args:
        space: a grid in Tune's form, or a searcher that proposes settings.
        resources: resources of one run.
        seconds: time after which all runs are stopped, with the states of their last epochs saved.
        halving: the scheduler that stops runs that fall behind.
        samples: number of settings to propose.
        at_once: number of trials at a time.
    """
    if halving is not None:
        halving.history_of = lambda trial: begun_history(work, settings_of_trial(trial))
    silence_ray_tune()
    say_if_waiting(resources)
    keep_aws_keys_from_tune()
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
            reuse_actors=False,  # a process that is used again keeps gigabytes of its last run
            trial_dirname_creator=lambda trial: work.cell_of(settings_of_trial(trial)).name,
        ),
        run_config=ray.tune.RunConfig(
            name=datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S"),
            storage_path=str(ledger.root.resolve() / "tune"),
            failure_config=ray.tune.FailureConfig(max_failures=TRIES - 1),
            callbacks=[Keeper(ledger, work, halving), *trackers(ledger.root)],
            stop=Interruption(),
            verbose=0,
        ),
    ).fit()


def persist(attempt: Callable[[], None]) -> None:
    """Run Tune, and run it again if a run was killed for its memory, after which Tune 2.60 ends.

    Raises:
        UserError: that happened too often.
    """
    for n in range(1, TRIES + 1):
        try:
            return attempt()
        except RuntimeError as error:
            if not isinstance(error.__cause__ or error.__context__, ray.exceptions.OutOfMemoryError):
                raise
            print(f"sweep: a run was killed because the node has too little memory (time {n} of {TRIES})", flush=True)
        gc.collect()  # ends the controller's actors
    raise UserError("the nodes have too little memory for so many runs at a time; give Ray fewer processors, or --runs-per-gpu less")
