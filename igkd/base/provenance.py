"""How a result was made: command, commit, versions, machine."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Processor flags that decide how fast a network runs, fastest first.
ARITHMETIC = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
PACKAGES = ("igkd", "torch", "torchvision", "ray", "captum", "onnx", "onnxruntime", "pyarrow", "numpy")


def provenance(command: str, seed: int, started: datetime.datetime) -> dict[str, Any]:
    """How a result was made: command, commit, seed, versions, machine, start (ISO 8601) and seconds."""
    return {
        "command": command,
        "commit": commit(),
        "seed": seed,
        "versions": versions(),
        "machine": machine(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((now() - started).total_seconds(), 1),
    }


def command() -> str:
    """The command line that starts this program again, quoted for a shell."""
    typed = sys.orig_argv[1:]
    if typed[:2] == ["-m", "igkd"] or (typed and Path(typed[0]).name == "igkd"):  # a subcommand, see igkd/__main__.py
        return shlex.join(["igkd", *typed[2 if typed[0] == "-m" else 1 :]])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return shlex.join([*program, *sys.argv[1:]])


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short git commit of this source tree, with "+" if it was changed since; "unknown" outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def processor() -> dict[str, str]:
    """Fields of the last processor in /proc/cpuinfo, such as "model name" and "flags"; empty on systems other than Linux."""
    try:
        facts = dict(line.partition(":")[::2] for line in Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, value in facts.items()}


def machine() -> str:
    """Number of cores, processor, memory and GPU in one line of text."""
    import torch

    facts, memory = processor(), ""
    arithmetic = next((f" ({flag})" for flag in ARITHMETIC if flag in facts.get("flags", "").split()), "")
    name = facts.get("model name", platform.processor() or platform.machine()) + arithmetic
    with contextlib.suppress(OSError, ValueError):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} x {name}{memory}, {gpu}"
