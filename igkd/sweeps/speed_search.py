"""Times candidates on this machine before any is trained, and selects those within the budget.

OUT/latencies.json has an entry for each network: ONNX Runtime in static int8, one image a pass, one thread, in turns with the teacher.
Latency does not depend on weights, so they are random.
"""

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from igkd.base import run_directory
from igkd.base.errors import UserError
from igkd.base.provenance import command, machine, now, provenance
from igkd.base.schema import typed
from igkd.base.storage import write_bytes, write_json
from igkd.deployment import formats
from igkd.deployment.export import as_decoded
from igkd.deployment.formats import Pixels
from igkd.deployment.latency import Timing, measure
from igkd.evaluation.speed import Latencies, Measured
from igkd.networks.network import Classifier, NetworkSpec, build, multiply_adds, parameter_count
from igkd.store import Store

LATENCIES = "latencies.json"
TOGETHER = 6
"""Number of networks in one group that takes turns with the teacher; each is a process that waits for its turn."""
CALIBRATION = 64
"""Number of the store's images for calibrating int8; its ranges do not matter here, since the networks are untrained."""


def read_latencies(root: Path) -> Latencies | None:
    """The latencies measured earlier; None if there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = root / LATENCIES
    if not path.exists():
        return None
    try:
        found = typed(Latencies, run_directory.read_object(path))
        _ = found.measured  # the networks are typed, too
        return found
    except TypeError as error:
        raise UserError(f"{path} is not of a search of this version ({error}); delete it to have the latencies measured anew") from None


def measured_latencies(root: Path, specs: Sequence[NetworkSpec], teacher: str, store: Store, rounds: int, budget: float) -> Latencies:
    """The latencies of all networks; those that this machine has not timed yet are measured now, and written to OUT/latencies.json.

    Args:
        root: OUT.
        specs: the networks; the first is the one that candidates are compared with.
        teacher: names the teacher, as for `open_teacher`.
        store: int8 is calibrated on its images.
        rounds: rounds of each network.
        budget: required speed relative to the teacher; only recorded.

    Raises:
        UserError: a network cannot be run.
    """
    from igkd.networks.open import open_teacher

    found, started = read_latencies(root), now()
    if found is None or (found.machine, found.rounds) != (machine(), rounds):
        found = Latencies(machine=machine(), rounds=rounds, load=(), budget=budget, networks=[], provenance={})
    found = dataclasses.replace(found, budget=budget)
    known = {one.network for one in found.measured}
    missing = [spec for spec in specs if spec.name not in known]
    if missing:
        calibration = as_decoded(store.samples([0])[0])[:CALIBRATION]
        with tempfile.TemporaryDirectory(prefix="igkd-") as directory:
            original = Path(directory) / "teacher.onnx"
            write_int8(open_teacher(teacher)[0], original, calibration)
            for start in range(0, len(missing), TOGETHER):
                load = os.getloadavg()[0]
                group = timed_group(
                    missing[start : start + TOGETHER], specs[0].name, str(original), teacher, calibration, Path(directory), rounds
                )
                for one in group:
                    print(
                        f"search: {one.network} is {one.times_as_fast:.1f} times as fast as the teacher in the same runtime "
                        f"({one.milliseconds:.3f} ms), {one.parameters:,} parameters",
                        flush=True,
                    )
                networks = [*found.networks, *map(dataclasses.asdict, group)]
                made = provenance(command(), 0, started)
                found = dataclasses.replace(found, networks=networks, load=(*found.load, round(load, 2)), provenance=made)
                write_json(root / LATENCIES, dataclasses.asdict(found))
    write_json(root / LATENCIES, dataclasses.asdict(found))
    return found


def write_int8(model: Classifier, path: Path, calibration: Pixels) -> None:
    """Write a network as an int8 ONNX file."""
    network = formats.to_int8(formats.to_onnx(model.eval()), calibration)
    write_bytes(path, formats.with_metadata(network, formats.describe(model.spec, {})))


def timed_group(
    specs: Sequence[NetworkSpec], compared: str, original: str, eager: str, calibration: Pixels, directory: Path, rounds: int
) -> list[Measured]:
    """Time some untrained networks in turns with the teacher's int8 file and with the teacher by torch.

    Args:
        compared: name of the network that candidates are compared with.
        original, eager: the teacher's int8 file, and its checkpoint.
    """
    paths, sizes = [], []
    for number, spec in enumerate(specs):
        model = build(spec, 0)
        path = directory / f"student{number}.onnx"
        write_int8(model, path, calibration)
        paths.append(str(path))
        sizes.append((parameter_count(model), multiply_adds(model)))
    names = {field.name for field in dataclasses.fields(Timing)}
    rows = measure([original, eager, *paths], (1,), (1,), rounds)
    timings = [Timing(**{k: v for k, v in row.items() if k in names}) for row in rows]
    return [
        Measured(
            network=spec.name,
            candidate=spec.name != compared,
            parameters=parameters,
            multiply_adds=operations,
            milliseconds=statistics.median(timing.rounds),
            times_as_fast=timing.times_as_fast(timings[0]),
            times_as_fast_as_eager=timing.times_as_fast(timings[1]),
        )
        for spec, (parameters, operations), timing in zip(specs, sizes, timings[2:], strict=True)
    ]


def within_budget(measured: Iterable[Measured], budget: float, limit: int) -> list[Measured]:
    """The candidates that are fast enough, the largest first, since larger networks can learn more.

    Args:
        budget: required speed relative to the teacher in the same runtime.
        limit: largest number of candidates to return.

    Raises:
        UserError: none is fast enough.
    """
    candidates = [one for one in measured if one.candidate]
    fast = sorted((one for one in candidates if one.times_as_fast >= budget), key=lambda one: (-one.parameters, one.network))
    if not fast:
        fastest = max(candidates, key=lambda one: one.times_as_fast)
        raise UserError(
            f"none of {len(candidates)} candidates is {budget:g} times as fast as the teacher here; the fastest, {fastest.network}, "
            f"is {fastest.times_as_fast:.2f} times as fast: lower --budget, try more --candidates, or allow fewer --parameters"
        )
    return fast[:limit]
