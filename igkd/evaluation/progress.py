"""How far a sweep is, counted once and said in the same words by driver, `igkd sweeps status`, summary and report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {"done": "finished", "pruned": "stopped early", "diverged": "diverged"}
"""A row's `state`, as it is called: finished is a run that reached its last epoch, stopped early one that ASHA ended."""


def progress(rows: Sequence[Mapping[str, Any]], total: int, *, running: int = 0, failed: int = 0) -> str:
    """A sentence such as "3 of 8 runs finished, 2 stopped early, 1 running, 2 to go"; the numbers add up to the total.

    Args:
        rows: the rows of runs that have ended.
        total: number of runs asked for. If more have ended (of a search that had more trials before), that number.
        running: number of runs that are computing now.
        failed: number of runs that failed in this command; the next one tries them again.
    """
    states = Counter(str(row.get("state", "done")) for row in rows)
    total = max(total, len(rows) + running + failed)
    counts = {WORDS[state]: states[state] for state in ("pruned", "diverged")}
    counts |= {"failed": failed, "running": running, "to go": total - len(rows) - running - failed}
    return ", ".join([f"{states['done']:,} of {total:,} runs finished", *(f"{count:,} {word}" for word, count in counts.items() if count)])
