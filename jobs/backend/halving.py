"""Stops runs that fall behind, by ASHA on validation accuracy."""

import types
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler

METRIC = "validation_accuracy"


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020) that records which runs it stopped, and can be given the rows of an earlier driver."""

    def __init__(self, epochs: int, spared: frozenset[str] = frozenset(), first: int = 9) -> None:
        """Args:
        epochs: epochs of a complete run.
        spared: names of cells that it neither stops nor compares others with.
        first: no run is stopped before 1 / first of its epochs.
        """
        super().__init__(
            time_attr="epoch", metric=METRIC, mode="max", max_t=epochs + 1, grace_period=max(1, epochs // first), reduction_factor=3
        )
        self.stopped: set[str] = set()
        self.spared = spared
        self.history_of: Callable[[Any], Sequence[dict[str, Any]]] = lambda trial: ()
        """Gives the epochs that a trial of Tune has from an earlier driver, when it is added."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A run that goes on is compared with others by what it had after each of its epochs, as if it had not been broken off; its later
        epochs alone would count as its first, and every run that begins now would be behind."""
        super().on_trial_add(tune_controller, trial)
        if trial.config.get("cell") not in self.spared:
            for entry in self.history_of(trial):
                super().on_trial_result(tune_controller, trial, entry)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.config.get("cell") in self.spared:
            return str(self.CONTINUE)
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action == self.STOP:
            self.stopped.add(trial.trial_id)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.config.get("cell") not in self.spared:
            super().on_trial_complete(tune_controller, trial, result)


def replay(halving: Halving, rows: list[dict[str, Any]]) -> None:
    """Give ASHA the histories of an earlier driver's runs, so that new runs are compared with them."""
    nobody: Any = None  # ASHA does not use Tune's controller
    for row in rows:
        trial: Any = types.SimpleNamespace(trial_id=row["cell"], config={"cell": row["cell"]})
        halving.on_trial_add(nobody, trial)
        for entry in row["history"]:
            halving.on_trial_result(nobody, trial, entry)
    halving.stopped.clear()
