"""Starting Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program


def test_a_job_has_a_ray_of_its_own_unless_it_is_told_of_one(cluster: None) -> None:
    """It would join ours, which runs on this machine, and end when we do."""

    def address(environment: dict[str, str]) -> str:
        done = run_program("tests.helpers.on_ray", ["0"], environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    ours = ray.get_runtime_context().gcs_address
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    assert address(alone) != ours
    assert address(alone | {"RAY_ADDRESS": ours}) == ours


@pytest.mark.slow
def test_a_training_beside_another_ray_prints_nothing_of_it(tmp_path: Path, own_ray: None) -> None:
    """Another one is started last, in the directory where Ray looks for one that is to be joined."""
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0", "--num-cpus=1", "--disable-usage-stats"]
    other = subprocess.Popen(head, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        current = Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
        while not current.exists():
            assert other.poll() is None
            time.sleep(0.5)
        command = [
            sys.executable,
            "-m",
            "jobs.teacher",
            "--images",
            "shapes:train=40,test=10",
            "--network",
            "mobilenet:width=0.35",
            "--epochs",
            "2",
        ]
        command += ["--batch-size", "16", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=400, check=True)
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert [line[:14] for line in lines[:4]] == ["teacher: 40 tr", "teacher: epoch", "teacher: epoch", "teacher finish"], lines
        assert all(line.startswith("warning: that is near chance") for line in lines[4:]), lines
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_job_ends_with_its_last_line_and_status_without_taking_python_apart() -> None:
    """The time that takes is waited for by every user; what was registered with atexit is done."""
    program = (
        "import atexit\nfrom jobs.backend.runtime import run_job\n"
        "class Kept:\n    def __del__(self):\n        print('taken apart')\n"
        "kept = Kept()\natexit.register(print, 'at exit')\n"
        "def main():\n    print('done')\n    return 3\nrun_job(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\nat exit\n", "")


STRANGER = """
import os, subprocess, sys
from jobs.backend.runtime import start_ray
import ray

start_ray()
join = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False); print('joined', len(ray.nodes()))"
for mode in ("token", "disabled"):
    tried = subprocess.run([sys.executable, "-c", join], env=os.environ | {"RAY_AUTH_MODE": mode}, capture_output=True, text=True)
    print(mode, tried.returncode == 0 and "joined 1" in tried.stdout)
"""


@pytest.mark.slow
def test_it_takes_no_work_from_whoever_has_no_token(tmp_path: Path) -> None:
    """In a home where Ray has never been: the token is made. Ray's ports are open to the network, dashboard aside."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", STRANGER]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["token", "True", "disabled", "False"], done.stderr
    assert len((tmp_path / ".ray" / "auth_token").read_text()) >= 32
    assert "authentication is disabled" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_work_in_a_thread_with_its_sentence(number: signal.Signals) -> None:
    work = "print('begins', flush=True), time.sleep(60)"
    program = f"import time\nfrom jobs.backend.runtime import in_thread, run_job\nrun_job(lambda: in_thread(lambda: ({work})))"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stderr is not None
        assert job.stdout.readline() == "begins\n"
        time.sleep(1)
        job.send_signal(number)
        assert job.wait(60) == 130
        assert job.stderr.read() == "stopped; the same command continues where this one ended\n"


USES_RAY = """
import ray
from jobs.backend.runtime import begin_ray, in_thread, run_job, start_ray

def work():
    begin_ray()
    print("begins", flush=True)
    start_ray()
    while True:
        ray.get(ray.put(1))

run_job(lambda: in_thread(work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_does_not_take_it_from_the_thread_that_waits_for_it(number: signal.Signals, own_ray: None) -> None:
    """The thread would find no Ray under its next call, which then ends the process with status 1 and a line of Ray's."""
    with subprocess.Popen([sys.executable, "-c", USES_RAY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stderr is not None
        assert job.stdout.readline() == "begins\n"
        job.send_signal(number)
        assert job.wait(120) == 130
        assert job.stderr.read() == "stopped; the same command continues where this one ended\n"


@pytest.mark.parametrize(("seconds", "status", "said"), [("0.2", 0, "the time is up; the same command continues"), ("None", 3, "")])
def test_work_in_a_thread_ends_when_the_time_is_up(seconds: str, status: int, said: str) -> None:
    program = (
        "import sys, time\nfrom jobs.backend.runtime import in_thread, stopping_after\n"
        f"with stopping_after({seconds}):\n    in_thread(lambda: time.sleep(60 if {seconds} else 0))\nsys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout and "Traceback" not in done.stderr
