"""Progress of long work on images: a bar in a terminal, lines in a log."""

import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

from igkd.base.time_limit import duration

SAY_S = 10.0
"""Least seconds between two lines in a log, but for the first and the last."""


class Progress:
    """Says how much of some work is done, at what rate, and when it will end.

    A context manager, with which a bar ends, also after an error.
    """

    def __init__(self, head: str, total: int) -> None:
        """Args:
        head: what begins each line, such as "precompute: views of ".
        total: number of images.
        """
        self._head, self._total = head, total
        self._begin, self._spoke = time.monotonic(), -SAY_S
        self._bar: tqdm | None = None
        if sys.stdout.isatty():
            size = shutil.get_terminal_size()  # tqdm draws nothing in a terminal that has no size, as some containers' have none
            layout = "{desc}{n_fmt}/{total_fmt} images |{bar}| {postfix[0]}"
            how = {"bar_format": layout, "ncols": size.columns, "nrows": size.lines, "postfix": [""]}
            self._bar = tqdm(total=total, desc=head, file=sys.stdout, **how)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int) -> None:
        """Say that so many images are done."""
        now = time.monotonic()
        rate = done / max(now - self._begin, 1e-9)
        left = f"about {duration(max(1.0, (self._total - done) / rate))} left" if done < self._total else "done"
        if self._bar is not None:
            self._bar.postfix[0] = f"{rate:.1f} images/s, {left}"
            self._bar.update(done - self._bar.n)
            self._bar.refresh()
        elif done >= self._total or now - self._spoke >= SAY_S:
            self._spoke = now
            print(f"{self._head}{done}/{self._total} images, {rate:.1f} images/s, {left}", flush=True)
