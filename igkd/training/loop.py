"""One training run, of a teacher or a student: step, epoch, schedule, evaluation, resumption.

The loop does not use Ray. It is an iterator of epochs, so that its caller decides what happens between them (report, checkpoint, stop).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from igkd.attribution.attention import attention_map
from igkd.base.errors import UserError
from igkd.base.time_limit import duration
from igkd.config.optimisation import LOW_RESOLUTION, Objective, Optimisation
from igkd.images.samples import Samples
from igkd.networks.layers import twice_differentiable
from igkd.networks.network import Classifier
from igkd.store.signals import SIGNALS
from igkd.store.top_logits import TopLogits
from igkd.training.augment import augment, logits_of_crops, map_targets
from igkd.training.batches import Batch, Feed, check_validation
from igkd.training.execution import Forward, autocast
from igkd.training.optimizer import learning_rate, set_training, unwrapped
from igkd.training.state import History
from igkd.training.terms import terms_of
from igkd.training.terms.term import Step, Term

SAY_S = 15.0
"""Seconds between two lines of progress within an epoch."""


class Diverged(UserError):
    """The loss became NaN or infinite."""


def make_average(model: nn.Module, optimisation: Optimisation) -> AveragedModel | None:
    """The moving average of weights and buffers; None if none is wanted.

    The decay at step n is at most n / (n + 10), so that the random initial weights are soon forgotten.
    """
    if not optimisation.averaging:
        return None

    def update(averaged: list[Tensor], current: list[Tensor], step: Tensor) -> None:
        decay = min(optimisation.averaging, step.item() / (step.item() + 10))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                # What stays the same is left alone: between two infinities, as in a mask of attention, there is no number.
                mean.copy_(torch.where(mean == value, value, mean.lerp(value, 1 - decay)))
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]


@dataclasses.dataclass(kw_only=True)
class Learner:
    """A network in training, with all that its steps need."""

    model: nn.Module
    """A `Classifier`, possibly wrapped for data parallelism, on its device."""
    optimizer: torch.optim.Optimizer
    optimisation: Optimisation
    objective: Objective
    seed: int
    terms: nn.ModuleList | None = None
    """Terms of the loss; None for those of the objective. Their parameters, if any, are the optimizer's, too."""
    average: AveragedModel | None = None
    """Moving average of the weights, updated at every step; it is the network that is evaluated."""
    teacher: nn.Module | None = None
    """The live teacher, in evaluation mode on the same device."""
    compiled: Forward | None = None
    """The compiled forward pass, used in training instead of the model's own."""
    rank: int = 0
    world: int = 1
    progress: Callable[[str], None] = print
    """Called with lines of progress."""

    def __post_init__(self) -> None:
        if self.terms is None:
            self.terms = terms_of(self.objective, self.optimisation)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def compute_loss(learner: Learner, batch: Batch, epoch: int, scale: float = 1.0, number: int = 0) -> tuple[Tensor, Tensor]:
    """Augment one batch and compute the loss, the weighted sum of its terms: (1 - alpha) CE + alpha KD + gamma AT, and so on.

    Args:
        batch: on the model's device; its samples have the teacher's signals that the terms need.
        scale: factor on the sides of the student's images (progressive resizing), applied after overlay and cutout. The teacher always
            gets the unscaled crop, so that live and stored logits are of the same pixels. Attention of another size is interpolated, and
            so is the teacher's map.
        number: of the step in the whole run, from 0; it decides which terms are computed.

    Returns:
        scalar loss (mean over the batch) and logits, both float32, logits (B, classes).
    """
    samples, optimisation, objective = batch.samples, learner.optimisation, learner.objective
    assert learner.terms is not None
    terms = [term for term in learner.terms if isinstance(term, Term) and number % term.every == 0]
    signals = frozenset(signal for term in terms for signal in term.signals)
    pixels, clean = augment(samples, batch.draws, optimisation, objective, learner.seed, epoch)
    target = map_targets(samples, batch.draws, optimisation, objective, learner.seed, epoch) if "ig" in signals else None
    if scale != 1.0:
        size = [round(side * scale) for side in samples.shape]
        pixels = resized(pixels, size)
        target = None if target is None else resized(target[:, None], size)[:, 0]
    twice = any(term.differentiates for term in terms)
    if twice:
        pixels.requires_grad_()
    network = learner.model if twice or learner.compiled is None else learner.compiled  # compiled code has no second derivative
    with autocast(optimisation, pixels.device), twice_differentiable() if twice else contextlib.nullcontext():
        logits, outputs = forward(network, pixels, tuple(dict.fromkeys(tap for term in terms for tap in term.taps)))
    logits = logits.float()
    step = Step(logits, samples.labels, outputs, *teach(learner, batch, clean, signals - {"ig"}))
    if twice:
        student = unwrapped(learner.model)
        assert isinstance(student, Classifier)
        step = dataclasses.replace(step, pixels=pixels, origin=student.mean, teacher_map=target)
    first, *others = (term.weight * term(step) for term in terms)
    loss: Tensor = sum(others, first)
    return loss, logits


def resized(pixels: Tensor, size: list[int]) -> Tensor:
    """Images (B, C, H, W) scaled to another size, bilinearly and without aliasing."""
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


Taught = tuple[Tensor | TopLogits | None, Tensor | None, Tensor | None]


def teach(learner: Learner, batch: Batch, clean: Tensor, signals: frozenset[str]) -> Taught:
    """The teacher's logits float32 (B, classes), or the largest of them, its attention float32 (B, h, w) and its features float32
    (B, C, h, w) of a batch's crops; None for what is not needed.

    Args:
        clean: float (B, 3, H, W), the crops without overlay and cutout.
        signals: which of "logits", "attention" and "features" are needed.
    """
    samples, draws, objective = batch.samples, batch.draws, learner.objective
    if not signals:
        return None, None, None
    if objective.logits == "live":
        assert learner.teacher is not None
        taps = (objective.teacher_tap or objective.tap,) if signals & {"attention", "features"} and objective.tap is not None else ()
        with torch.no_grad(), autocast(learner.optimisation, clean.device):
            wanted, outputs = forward(learner.teacher, clean, taps)
        features = outputs[taps[0]].float() if taps else None
        shown = attention_map(features) if features is not None and "attention" in signals else None
        return wanted.float(), shown, features if "features" in signals else None
    shown = samples.signals.get("attention") if "attention" in signals else None
    if shown is not None and not objective.uncropped_maps:
        shown = SIGNALS["attention"].moved(shown, draws.view, samples.shape)
    if objective.logits == "views":
        views, classes = samples.signals.get("views"), samples.signals.get("view_classes")
        return None if views is None else logits_of_crops(views, draws, classes), shown, None
    return samples.logits, shown, None


def forward(model: Forward, pixels: Tensor, taps: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the outputs of tapped layers by path."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return model(pixels, taps) if taps else (model(pixels), {})


def _sum_over_workers(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


def evaluate_split(model: nn.Module, samples: Samples, rank: int = 0, world: int = 1, batch_size: int = 250) -> dict[str, float]:
    """Mean cross-entropy and accuracy over samples, divided among the workers; the model's training mode is restored."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = correct = 0.0
    mine = np.arange(rank, len(samples), world)
    with torch.no_grad():  # not inference_mode: a network may keep a tensor that it makes here, and use it in training
        for start in range(0, len(mine), batch_size):
            batch = samples.select(mine[start : start + batch_size]).to(device)
            logits = model((batch.pixels.float() / 255).contiguous(memory_format=torch.channels_last))
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            correct += (logits.argmax(1) == batch.labels).sum().item()
    model.train(was_training)
    loss, correct = _sum_over_workers([loss, correct], device)
    return {"loss": loss / len(samples), "accuracy": correct / len(samples), "correct": int(correct), "count": len(samples)}


def train(learner: Learner, feed: Feed, validation: Samples, history: History) -> Iterator[History]:
    """Train epoch by epoch.

    Args:
        feed: this worker's batches.
        validation: validation images of all workers.
        history: rows of the epochs done so far; training continues after them.

    Yields:
        the history after each epoch, one row longer than the last.

    Raises:
        UserError: too few validation images for the workers.
        Diverged: the loss became NaN or infinite.
    """
    check_validation(len(validation), learner.world)
    history, validation, epochs = list(history), validation.to(learner.device), learner.optimisation.epochs
    for epoch in range(len(history) + 1, epochs + 1):
        begin = time.monotonic()
        loss, accuracy, seen = train_epoch(learner, feed, epoch)
        seconds = time.monotonic() - begin
        evaluated = learner.model if learner.average is None else learner.average
        checked = evaluate_split(evaluated, validation, learner.rank, learner.world)
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "validation_loss": checked["loss"],
                "validation_accuracy": checked["accuracy"],
                "seconds": round(seconds, 3),
            }
        )
        learner.progress(
            f"epoch {epoch}/{epochs} done in {seconds:.0f} s ({seen / seconds:.0f} images/s): "
            f"loss {loss:.3f}, training accuracy {accuracy:.1%}, validation {checked['accuracy']:.1%}"
            + (
                f"; about {duration(max(1.0, learner.optimisation.left_after(epoch) * (time.monotonic() - begin)))} left"
                if epoch < epochs
                else ""
            )
        )
        yield list(history)


def train_epoch(learner: Learner, feed: Feed, epoch: int) -> tuple[float, float, int]:
    """Train one epoch; gives mean loss, accuracy in training, and images seen, over all workers.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    device, optimisation = learner.device, learner.optimisation
    set_training(learner.model, optimisation)
    scale = LOW_RESOLUTION if epoch <= optimisation.low_resolution_epochs else 1.0
    total, correct = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    seen, spoke_of, spoke = 0, 0, time.monotonic()
    for step, batch in enumerate(feed.epoch(epoch)):
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(optimisation, (epoch - 1 + step / feed.steps) / optimisation.epochs) * group.get("factor", 1.0)
        loss, logits = compute_loss(learner, batch, epoch, scale, (epoch - 1) * feed.steps + step)
        learn(learner, loss, len(batch.samples) * learner.world / batch.size)
        total += loss.detach() * len(batch.samples)
        correct += (logits.detach().argmax(1) == batch.samples.labels).sum()
        seen += batch.size
        # On a GPU, reading the loss waits for all its work, so it is checked only every 50 steps.
        if (device.type == "cpu" or step % 50 == 0 or step == feed.steps - 1) and not math.isfinite(total.item()):
            raise Diverged(f"the loss became {loss.item()} in epoch {epoch}, step {step + 1}; try a lower --learning-rate")
        if (now := time.monotonic()) - spoke > SAY_S:
            rate, spoke, spoke_of = (seen - spoke_of) / (now - spoke), now, seen
            learner.progress(
                f"epoch {epoch}/{optimisation.epochs}, {seen}/{feed.count} images, {rate:.0f} images/s, loss {loss.item():.3f}"
            )
    loss_sum, hits = _sum_over_workers([total.item(), correct.item()], device)
    return loss_sum / seen, hits / seen, seen


def learn(learner: Learner, loss: Tensor, share: float) -> None:
    """One step of the optimizer, and of the average.

    Args:
        share: this worker's share of the step's images, times the number of workers. Gradients are averaged over workers; with this
            weight, that gives the mean over images.
    """
    learner.optimizer.zero_grad()
    (loss * share).backward()
    if learner.world > 1 and learner.terms is not None:
        for parameter in learner.terms.parameters():  # the model's gradients are averaged by its wrapper
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= learner.world
    learner.optimizer.step()
    if learner.average is not None:
        learner.average.update_parameters(unwrapped(learner.model))
