"""Time and memory of a store by its number of rows, with everything real except the attribution."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igkd import store
from igkd.base import provenance
from igkd.base.choices import Split
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.precompute import PrecomputeConfig
from igkd.images.codec import encode_png
from igkd.images.source import ImageSource, Record
from igkd.networks.network import NetworkSpec, build
from igkd.store import compute
from igkd.store.compute import Rows
from jobs.backend.runtime import start_ray
from jobs.backend.stages import Attribute
from jobs.precompute import fill_store

SIDE = 8
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fill a store by the real pipeline, with images and maps that cost nothing; kill the driver halfway, resume, and verify."""

    rows: tuple[int, ...] = (10_000, 100_000)
    """Number of images of each store."""
    cpus: int | None = None
    """Number of CPUs for Ray; by default all."""
    scratch: str | None = None
    """Directory for the stores, about 3 KB a row; by default a temporary one."""
    out: str | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class TinyImages(ImageSource):
    """Ten pictures of 8x8 pixels, repeated."""

    rows: int
    classes: tuple[str, ...] = tuple("0123456789")

    def __str__(self) -> str:
        return f"tiny:{self.rows}"

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.arange(self.rows) % 10

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        pictures = [encode_png(np.full((SIDE, SIDE, 3), 25 * label, np.uint8)) for label in range(10)]
        return (Record(i, i % 10, pictures[i % 10], str(i)) for i in ids)

    def fingerprint(self, split: Split) -> str:
        return str(self)


class NoAttribution(Attribute):
    """Fills rows with values of the right shape that depend on the image's id, without running a model."""

    def attributed(self, rows: Rows) -> Rows:
        ids = np.asarray(rows["image_id"])
        real = np.dtype(self.plan.precision)
        made = {
            "ig": np.broadcast_to((ids % 1000).astype(real)[:, None, None], (len(ids), *self.plan.image_shape)),
            "ig_delta": np.zeros(len(ids), np.float32),
            "logits": np.zeros((len(ids), len(self.plan.classes)), np.float32),
            "attention": np.zeros((len(ids), *self.plan.attention_shape), real),
        }
        return {name: column for name, column in rows.items() if name != "pixels"} | made


def memory(name: str) -> int:
    """A figure of this process's memory in MB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


def fill(rows: int, uri: str, cpus: int | None) -> dict[str, Any]:
    """A driver: plan a store and compute its missing parts; gives seconds, and the peak growth of its memory in MB."""
    start_ray(num_cpus=cpus)
    source = TinyImages(rows)
    spec = NetworkSpec(classes=source.classes, image_shape=(SIDE, SIDE), name="mobilenet:width=0.35")
    model = build(spec, 0).eval()
    # An engine that needs no trial: fast would compile the network, which takes seconds and memory once, however many rows there are.
    config = PrecomputeConfig(images=str(source), teacher="none", store=uri, engine="torch")
    compute.make_plan(config, TinyImages(100), model, "none")  # a first call, so that its one-time costs are not counted
    before, begin = memory("VmRSS"), time.monotonic()
    plan, selection = compute.make_plan(config, source, model, "none")
    planned, missing = time.monotonic(), plan.parts
    if Path(uri).exists():
        missing = len(store.start(uri, plan))
    manifest = fill_store(config, source, model, plan, selection, NoAttribution)
    seconds = time.monotonic() - planned
    todo = min(missing * plan.rows_per_file, rows)
    return {
        "planning_seconds": planned - begin,
        "seconds": seconds,
        "computed": todo,
        "rows_per_second": todo / seconds,
        "driver_megabytes": memory("VmHWM") - before,
        "complete": manifest["rows"] == rows,
    }


def check(uri: str) -> dict[str, Any]:
    """Verify a store; gives seconds and memory in MB."""
    before, begin = memory("VmRSS"), time.monotonic()
    problems = store.verify(uri)
    return {"verify_seconds": time.monotonic() - begin, "verify_megabytes": memory("VmHWM") - before, "problems": len(problems)}


def process(call: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start a process that calls a function of this module and writes its result to LOG.json."""
    program = f"import bench.scale as s, json; from pathlib import Path; Path({str(log) + '.json'!r}).write_text(json.dumps(s.{call}))"
    with log.open("ab") as out:
        environment = {**os.environ, "RAY_ADDRESS": "local"}  # never connect to another cluster
        return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)


def result(running: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    if running.wait():
        raise SystemExit(log.read_text()[-3000:])
    figures: dict[str, Any] = json.loads(Path(f"{log}.json").read_text())
    return figures


def measure(rows: int, scratch: Path, cpus: int | None) -> dict[str, Any]:
    """Fill a store, killing the first driver when half of the parts exist, and verify it."""
    uri, log = str(scratch / f"store-{rows}"), scratch / f"log-{rows}"
    parts = -(-rows // compute.MAX_ROWS_PER_FILE)
    first = process(f"fill({rows}, {uri!r}, {cpus})", log)
    while sum(1 for _ in Path(uri).glob("part-*")) < parts / 2:
        if first.poll() is not None:
            raise SystemExit(f"the first driver ended before half of the work was done:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)
    first.kill()
    first.wait()
    resumed = result(process(f"fill({rows}, {uri!r}, {cpus})", log), log)
    return {"rows": rows} | resumed | result(process(f"check({uri!r})", log), log)


def main() -> None:
    config, started = parse(Config, "python -m bench.scale"), provenance.now()
    scratch = Path(config.scratch) if config.scratch else Path(tempfile.mkdtemp(prefix="igkd-scale-"))
    scratch.mkdir(parents=True, exist_ok=True)
    figures = []
    print(f"{'rows':>9} {'planned':>9} {'driver':>9} {'computed':>9} {'rows/s':>8} {'verified':>9} {'memory':>9} {'problems':>8}")
    for rows in config.rows:
        row = measure(rows, scratch, config.cpus)
        figures.append(row)
        shown = (
            f"{rows:9,} {row['planning_seconds']:7.2f} s {row['driver_megabytes']:6} MB {row['computed']:9,} {row['rows_per_second']:8,.0f}"
        )
        print(f"{shown} {row['verify_seconds']:7.1f} s {row['verify_megabytes']:6} MB {row['problems']:8}", flush=True)
        shutil.rmtree(scratch / f"store-{rows}")
    if config.out:
        command = f"python -m bench.scale --rows {' '.join(map(str, config.rows))}"
        write_json(Path(config.out), {"rows": figures} | provenance.provenance(command, 0, started))


if __name__ == "__main__":
    main()
