"""Settings of `igkd latency`."""

from dataclasses import dataclass

import tyro

from igkd.base.errors import UserError
from igkd.base.settings import check_out


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Compare the latency of models. Opening a .pt2 file runs code in it, so use only your own."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Checkpoints' directories, NAME.onnx and NAME.pt2 files; the others are compared with the first."""
    batches: tuple[int, ...] = (1, 64)
    """Batch sizes: images in one pass."""
    threads: tuple[int, ...] | None = None
    """Numbers of threads for one pass; by default 1, and the number of CPUs."""
    rounds: int = 20
    """Rounds, of 5 passes of each model."""
    out: str | None = None
    """JSON file of the result; without it, only a table is printed."""

    def __post_init__(self) -> None:
        check_out(self.out, "file")
        if not self.models or len(set(self.models)) < len(self.models):
            raise UserError("name at least one model, and none of them twice")
        if not self.batches or min(*self.batches, *(self.threads or (1,)), self.rounds, 1) < 1 or self.threads == ():
            raise UserError("batches, threads and rounds must be at least 1")
