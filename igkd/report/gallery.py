"""Computes what the pipeline's report shows of finished runs: pictures with maps, overlap of maps with masks, latencies."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from igkd.attribution import FAST_ENGINES, attributor, overlay
from igkd.base.choices import Engine
from igkd.deployment.latency import take_turns
from igkd.deployment.timed_process import timed, torch_call
from igkd.evaluation.map_metrics import check_finite, mass_inside, pointing_hits
from igkd.evaluation.significance import t_interval
from igkd.images.samples import Samples
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, multiply_adds, parameter_count
from igkd.report.pipeline_page import Focus, GalleryRow, Latency
from igkd.store import Store

BATCHES = (1, 64)
ROUNDS = 3
"""Of latencies: enough to tell a cut from another without keeping the report waiting."""


def load_students(rows: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> dict[str, Classifier]:
    """One student of each arm, that of the first seed."""
    students: dict[str, Classifier] = {}
    for row, directory in zip(rows, directories, strict=True):
        if row["name"] not in students:
            students[row["name"]] = checkpoint.load(directory)
    return students


class Showcase:
    """Some validation images of a store, equally many of each class, and every model's maps of them."""

    def __init__(self, store: Store, teacher: Classifier, students: Mapping[str, Classifier], per_class: int) -> None:
        samples, validation = store.samples()
        labels = samples.labels.numpy()
        chosen = [np.flatnonzero(validation & (labels == c))[:per_class] for c in range(len(store.plan.classes))]
        rows = np.concatenate(chosen)
        self.store, self.teacher, self.students = store, teacher, dict(students)
        self.samples: Samples = samples.select(rows)
        self.masks: NDArray[np.bool_] | None = store.column("mask")[rows].astype(np.bool_) if store.plan.has_mask else None
        pixels, targets = self.samples.pixels.float() / 255, self.samples.labels
        plan, ids = store.plan, torch.from_numpy(self.samples.ids)
        # By the same rule, from the colour that the teacher's maps in the store start from. For so few images compiling a graph would take
        # longer than computing without one.
        engine: Engine = "torch" if plan.engine in FAST_ENGINES else plan.engine
        baseline = teacher.spec.mean
        self.maps = {
            arm: attributor(student, plan.method, engine, plan.steps, baseline)(pixels, targets, ids)
            for arm, student in self.students.items()
        }
        for arm, found in self.maps.items():
            check_finite(found.ig.numpy(), self.samples.ids, f"the student {arm}")

    def gallery(self) -> list[GalleryRow]:
        """One row for each class. The teacher's map is read from the store, so that a map of another image would be noticed."""
        classes = self.store.plan.classes
        assert self.samples.ig is not None and self.samples.logits is not None
        pixels = self.samples.pixels.float() / 255
        shown = overlay.overlay(pixels, overlay.minmax(self.samples.ig))
        gallery = []
        for label in range(len(classes)):
            rows = np.flatnonzero(self.samples.labels.numpy() == label)
            if len(rows) == 0:
                continue
            i = int(rows[0])
            gallery.append(
                GalleryRow(
                    label=classes[label],
                    image=self.samples.pixels[i].permute(1, 2, 0).numpy(),
                    teacher_map=self.samples.ig[i].numpy(),
                    overlay=shown[i].permute(1, 2, 0).numpy(),
                    student_maps={arm: result.ig[i].numpy() for arm, result in self.maps.items()},
                    mask=None if self.masks is None else self.masks[i],
                    teacher_prediction=classes[int(self.samples.logits[i].argmax())],
                    student_predictions={arm: classes[int(result.logits[i].argmax())] for arm, result in self.maps.items()},
                )
            )
        return gallery

    def focus(self) -> list[Focus]:
        """Overlap of the maps with the ground-truth masks; empty if there are no masks."""
        if self.masks is None:
            return []
        assert self.samples.ig is not None
        maps = {"teacher": self.samples.ig.numpy()} | {arm: result.ig.numpy() for arm, result in self.maps.items()}
        maps["uniform map"] = np.ones_like(maps["teacher"])
        rows = []
        for name, values in maps.items():
            mean, low, high = t_interval(mass_inside(values, self.masks).tolist())
            # A uniform map has no maximum: use the hit rate of a random pixel.
            hits = self.masks.mean() if name == "uniform map" else pointing_hits(values, self.masks).mean()
            rows.append(Focus(model=name, inside=mean, low=low, high=high, hits=float(hits), images=len(values)))
        return rows

    def latency(self) -> list[Latency]:
        """Warm latencies of teacher and students."""
        return warm_latencies(self.teacher, self.students.values())


def warm_latencies(teacher: Classifier, students: Iterable[Classifier]) -> list[Latency]:
    """Latencies as `igkd latency` measures them, but in this process and with one thread.

    Students with the same network have the same latency, so only one of them is timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads would wait for one another if other processes are running
    try:
        return _latencies(teacher, students)
    finally:
        torch.set_num_threads(threads)


def _latencies(teacher: Classifier, students: Iterable[Classifier]) -> list[Latency]:
    networks = {"teacher": teacher}
    for student in students:
        kind = student.spec.name
        networks.setdefault(f"student, {kind}", student)
    rows = []
    for batch in BATCHES:
        timings = take_turns({name: partial(timed, torch_call(network, batch)) for name, network in networks.items()}, ROUNDS)
        for name, network in networks.items():
            rows.append(
                Latency(
                    model=name,
                    parameters=parameter_count(network),
                    multiply_adds=multiply_adds(network),
                    batch=batch,
                    threads=torch.get_num_threads(),
                    p50=timings[name].p50,
                    p95=timings[name].p95,
                    times_as_fast=timings[name].times_as_fast(timings["teacher"]),
                )
            )
    return rows
