"""A sweep that is interrupted, in a process of its own."""

import signal
import subprocess
import sys
import time

import pytest

from igkd.base.errors import INTERRUPTED, STOPPED

SWEEP = """
import threading, time
from jobs.backend import sweep_progress
sweep_progress.PATIENCE_S = {patience}
def sweep():
    print("runs", flush=True)
    {does}
sweep_progress.interruptible(sweep)
"""


@pytest.mark.parametrize(("patience", "signals"), [(0.5, 1), (600, 2)])
def test_a_sweep_whose_thread_never_ends_is_ended_all_the_same(patience: float, signals: int) -> None:
    """As where Tune waits for a Ray that is gone: after some patience, or at once at the second Ctrl-C."""
    program = SWEEP.format(patience=patience, does="threading.Event().wait()")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        for number in range(signals):
            time.sleep(0 if number == 0 else 2)
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == INTERRUPTED and said.strip().splitlines()[-1] == STOPPED
