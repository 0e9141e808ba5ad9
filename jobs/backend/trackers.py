"""Logs a sweep to MLflow and to Weights & Biases, where the user's environment asks for it."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import ray.tune

from igkd.base.errors import UserError

HOOKS = (
    "on_step_begin", "on_step_end", "on_trial_start", "on_trial_restore", "on_trial_save", "on_trial_result", "on_trial_complete",
    "on_trial_recover", "on_trial_error", "on_checkpoint", "on_experiment_end",
)  # fmt: skip
"""The methods of ray.tune.Callback that are called while runs go on."""


def trackers(out: Path) -> list[ray.tune.Callback]:
    """Tune's loggers for MLflow and for Weights & Biases: those whose environment variables are set. A line says if one is not installed.

    Args:
        out: the sweep's directory. Its name is that of the experiment in MLflow, and of the project in Weights & Biases unless
            WANDB_PROJECT gives another; what Weights & Biases writes offline is in its subdirectory wandb/.

    Raises:
        UserError: one cannot be used as its environment variables say.
    """
    wanted = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_MODE" if os.environ.get("WANDB_MODE") else "WANDB_API_KEY"}
    found: list[ray.tune.Callback] = []
    for package, variable in wanted.items():
        if not (value := os.environ.get(variable)) or value == "disabled":
            continue
        if importlib.util.find_spec(package) is None:
            line = f"{variable} is set, but {package} is not installed, so nothing is logged to it: pip install {package}"
            print(f"sweep: {line}", flush=True)
            continue
        try:
            tracker = _mlflow(value, out) if package == "mlflow" else _wandb(out)
        except Exception as error:  # of a server, its client, or their settings
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{package} cannot be used as {variable} says ({reason[:200]}): correct it, or unset it to log nothing there"
            ) from None
        found.append(Secondary(tracker, package))
    return found


def _mlflow(uri: str, out: Path) -> ray.tune.Callback:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report its use to its makers
    import mlflow
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    mlflow.MlflowClient(uri).search_experiments(max_results=1)  # fails now, if it fails
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=out.name)


def _wandb(out: Path) -> ray.tune.Callback:
    import wandb
    from ray.air.integrations.wandb import WandbLoggerCallback

    mode: Any = os.environ.get("WANDB_MODE") or "online"
    wandb.Settings(mode=mode)  # fails now, if it fails
    # Without a directory, offline runs would be written among Ray's temporary files, and copies of them, perhaps cut short, be kept.
    return WandbLoggerCallback(project=os.environ.get("WANDB_PROJECT", out.name), mode=mode, dir=str(out.resolve()))


class Secondary(ray.tune.Callback):
    """A tracker that may fail: its first error is told, and the sweep goes on without it."""

    def __init__(self, tracker: ray.tune.Callback, name: str) -> None:
        self.tracker, self.name, self.works = tracker, name, True

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.attempt("setup", *args, **kwargs)

    def attempt(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the tracker, unless it has failed before."""
        if not self.works:
            return
        try:
            getattr(self.tracker, hook)(*args, **kwargs)
        except Exception as error:  # of a server, or its client
            self.works = False
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"sweep: {self.name} failed ({reason[:200]}); the sweep goes on without it", flush=True)


def _hook(name: str) -> Any:
    def call(self: Secondary, *args: Any, **kwargs: Any) -> None:
        self.attempt(name, *args, **kwargs)

    return call


for _name in HOOKS:
    setattr(Secondary, _name, _hook(_name))
