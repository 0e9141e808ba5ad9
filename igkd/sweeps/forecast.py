"""Estimates the time of a pipeline on this machine from training steps, maps and forward passes measured on random images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from igkd import attribution
from igkd.base.random_draws import validation_mask
from igkd.base.time_limit import duration
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Objective, Optimisation
from igkd.config.pipeline import Pipeline
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images
from igkd.images.samples import Samples, first_image
from igkd.networks.families import student_name
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.networks.open import open_teacher
from igkd.store import forwards, views
from igkd.training.identity import with_logits
from igkd.training.run import Trainer
from igkd.training.task import Task

STEPS = 3
"""Training steps of one measurement, after as many for warm-up."""
MAPS, CROPS = 4, 512
"""Number of maps, and of crops' logits, computed in one measurement."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the work."""

    name: str
    images: int
    """Total number of images: over all epochs of a training, or all crops of views."""
    rate: float
    """Images a second on the whole machine."""
    runs: int = 1

    @property
    def seconds(self) -> float:
        return self.runs * self.images / self.rate


def stages(pipeline: Pipeline) -> Iterator[Stage]:
    """Measure every stage of a pipeline, one after the other; writes nothing.

    Raises:
        UserError: the images or a given teacher do not exist.
    """
    config = pipeline.precompute
    source = open_images(config.images)
    labels = source.checked_labels("train")
    count = len(labels) if config.limit is None else min(config.limit, len(labels))
    side = config.image_size
    shape = (side, side) if side is not None else first_image(source, "train", config.bad_images).shape[:2]
    spec = NetworkSpec(classes=source.classes, image_shape=(shape[0], shape[1]))
    teacher: Classifier
    if pipeline.teacher is None:
        teacher = open_teacher(config.teacher)[0]
        spec = replace(spec, name=teacher.spec.name)
    else:
        given = pipeline.teacher
        spec = replace(spec, name=given.network)
        teacher = build(spec, 0).eval()
        held_out = int(validation_mask(labels).sum())
        yield _training("teacher", spec, given.optimisation, Objective(), len(labels) - held_out)
    yield from _store(config, teacher, count)
    train = count - round(count * float(validation_mask(labels).mean()))
    groups: dict[tuple[str, str], list[DistillConfig]] = {}
    for one in pipeline.students:
        groups.setdefault((one.label, one.student), []).append(one)
    for (label, name), group in groups.items():
        one = group[0]
        student = replace(spec, name=student_name(name, spec.name, spec.image_shape))
        live = with_logits(one, config.views != "none").which_logits == "live"
        # The time to look up what the store has is negligible, so logits of images stand for those of crops; and so is that of what is
        # laid over. The term feat is left out: its step depends on the layers that are compared.
        objective = replace(
            one.objective, logits="live" if live else "image", gamma=0.0, feature_weight=0.0, content="own", explanation="ig"
        )
        stage = _training(f"{label}, {student.name}", student, one.optimisation, objective, train, teacher if live else None)
        yield replace(stage, runs=len(group))


def _training(
    name: str, spec: NetworkSpec, optimisation: Optimisation, objective: Objective, count: int, teacher: Classifier | None = None
) -> Stage:
    """A training with `count` images an epoch; its rate is the mean over epochs of low and of full resolution.

    Args:
        teacher: runs along in each step, if the objective has live logits.
    """
    low = optimisation.low_resolution_epochs / optimisation.epochs
    measured = replace(optimisation, epochs=2, compile=False, low_resolution_epochs=0)
    seconds = sum(
        share * _seconds_an_image(spec, replace(measured, low_resolution_epochs=2) if small else measured, objective, teacher)
        for share, small in ((low, True), (1 - low, False))
        if share
    )
    return Stage(name=name, images=optimisation.epochs * count, rate=1 / seconds)


def _seconds_an_image(spec: NetworkSpec, optimisation: Optimisation, objective: Objective, teacher: Classifier | None) -> float:
    """Seconds for each image in a training step."""
    count, (height, width) = STEPS * optimisation.batch_size, spec.image_shape
    generator = torch.Generator().manual_seed(0)
    samples = Samples(
        ids=np.arange(count),
        pixels=torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator),
        labels=torch.randint(0, len(spec.classes), (count,), generator=generator),
        signals={
            "ig": torch.rand(count, height, width, generator=generator),
            "logits": torch.randn(count, len(spec.classes), generator=generator),
        },
    )
    task = Task(
        spec=spec,
        train=samples,
        count=count,
        validation=samples.select(np.arange(2)),
        optimisation=optimisation,
        objective=objective,
        seed=0,
        teacher=teacher,
    )
    trainer = Trainer(task, _on_device, progress=lambda line: None)
    seconds: float = list(trainer.epochs())[-1][-1]["seconds"]
    return seconds / count


def _store(config: PrecomputeConfig, teacher: Classifier, count: int) -> Iterator[Stage]:
    """The stages of precomputation: maps, and views if the settings ask for them."""
    gpu, (height, width) = torch.cuda.is_available(), teacher.spec.image_shape
    teacher = teacher.to("cuda" if gpu else "cpu")
    pixels = torch.randint(0, 256, (CROPS, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one_pass = attribution.takes_one_pass(config.engine, config.method, teacher, pixels[:MAPS])
    engine = attribution.find_engine(config.engine, config.method, gpu, teacher, (height, width), one_pass)[0]
    attribute = attribution.attributor(teacher, config.method, engine, config.steps, one_pass=one_pass)
    few, labels = pixels[:MAPS], torch.zeros(MAPS, dtype=torch.int64)
    yield Stage(name="maps", images=count, rate=MAPS / _seconds(lambda: attribute(few, labels, labels)))
    if config.views != "none":
        answer = forwards.answering(teacher, forwards.choose_forwards(teacher, pixels, gpu, config.views_precision))
        wanted = views.count_of(config.views)
        crops = 2 * (2 * config.padding + 1) ** 2 if wanted is None else wanted
        yield Stage(name="views", images=count * crops, rate=CROPS / _seconds(lambda: answer(pixels)))


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of the second call; the first is a warm-up, which includes compiling."""
    work()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _on_device(network: torch.nn.Module) -> torch.nn.Module:
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def line(stage: Stage) -> str:
    """A stage as a line of text."""
    what = stage.name if stage.runs == 1 else f"{stage.name}, {stage.runs} runs"
    return f"{what:52} {stage.images:12,} images {stage.rate:8.0f} a second {duration(stage.seconds):>12}"
