"""One training run, of a teacher or a student: step, epoch, schedule, evaluation, resumption.

The loop knows nothing of Ray. It is an iterator of epochs, so its caller decides what happens between them (report, checkpoint, stop).
"""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from igkd.attribution.attention import attention_map, resize_map
from igkd.base.errors import UserError
from igkd.config.optimisation import Objective, Recipe
from igkd.images.samples import Samples
from igkd.training.augment import augment, logits_of_crops, move_attention
from igkd.training.batches import Batch, Feed, check_validation
from igkd.training.execution import Forward, autocast
from igkd.training.losses import attention_transfer, distillation
from igkd.training.state import History

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, **how: torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **how),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Diverged(UserError):
    """The loss is no longer a number."""


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate at a fraction of the run: one cycle (Smith, Topin 2018) of linear warm-up over the first fifth, then a cosine to 0."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if progress < 0.2:
        return recipe.learning_rate * max(progress / 0.2, 0.01)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters; its learning rate is set anew at every step."""
    return OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def make_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The recipe's moving average of weights and buffers, if it has one.

    The decay at step n is at most n / (n + 10), so that the random weights of the start are soon forgotten.
    """
    if not recipe.averaging:
        return None

    def update(averaged: list[Tensor], current: list[Tensor], step: Tensor) -> None:
        decay = min(recipe.averaging, step.item() / (step.item() + 10))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]


def compute_loss(
    model: Forward,
    batch: Batch,
    recipe: Recipe,
    objective: Objective,
    *,
    seed: int,
    epoch: int,
    teacher: nn.Module | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Augment one batch and compute the total loss: alpha KD + (1 - alpha) CE + gamma AT.

    Args:
        model: maps (pixels, taps) to logits or (logits, outputs by path), as `Classifier.forward` does.
        batch: on the model's device; its samples have `ig`, `logits`, `views`, `attention` where the objective needs them.
        teacher: for a live objective, which takes logits and attention from it and not from the samples.
        scale: factor on the sides of the images that the student sees (progressive resizing), when overlay and cutout are on them. The
            teacher always sees the whole crop: so live and stored views stay the same. Attention of another size is interpolated.

    Returns:
        scalar loss (mean over the batch) and logits, both float32, logits (B, classes).
    """
    samples, tap = batch.samples, objective.tap if objective.gamma > 0 else None
    pixels, clean = augment(samples, batch.draws, recipe, objective, seed, epoch)
    if scale != 1.0:
        size = [round(side * scale) for side in samples.shape]
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    with autocast(recipe, pixels.device):
        logits, features = forward(model, pixels, tap)
    logits = logits.float()
    loss = (1 - objective.alpha) * F.cross_entropy(logits, samples.labels, label_smoothing=recipe.label_smoothing)
    if objective.alpha > 0 or objective.gamma > 0:
        wanted, shown = teach(batch, clean, recipe, objective, teacher)
        if objective.alpha > 0:
            assert wanted is not None
            loss = loss + objective.alpha * distillation(logits, wanted, objective.temperature)
        if objective.gamma > 0:
            assert features is not None and shown is not None
            mine = attention_map(features.float())
            loss = loss + objective.gamma * attention_transfer(mine, resize_map(shown, (mine.shape[1], mine.shape[2])))
    return loss, logits


def teach(
    batch: Batch, clean: Tensor, recipe: Recipe, objective: Objective, teacher: nn.Module | None
) -> tuple[Tensor | None, Tensor | None]:
    """What the teacher says of the crops of a batch: logits float32 (B, classes) and attention float32 (B, h, w), where they are needed.

    Args:
        clean: float (B, 3, H, W), the crops without overlay and cutout.
    """
    samples, draws = batch.samples, batch.draws
    tap = objective.tap if objective.gamma > 0 else None
    if objective.logits == "live":
        assert teacher is not None
        with torch.no_grad(), autocast(recipe, clean.device):
            wanted, features = forward(teacher, clean, tap)
        return wanted.float(), None if features is None else attention_map(features.float())
    shown = None if tap is None else samples.attention
    if shown is not None and not objective.uncropped_maps:
        shown = move_attention(shown, draws.view, samples.shape)
    if objective.logits == "views":
        return None if samples.views is None else logits_of_crops(samples.views, draws), shown
    return samples.logits, shown


def forward(model: Forward, pixels: Tensor, tap: str | None) -> tuple[Tensor, Tensor | None]:
    """Logits and, where a layer is tapped, its features."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if tap is None:
        return model(pixels), None
    logits, outputs = model(pixels, (tap,))
    return logits, outputs[tap]


def _sum_over_workers(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


def evaluate_split(model: nn.Module, samples: Samples, rank: int = 0, world: int = 1, batch_size: int = 250) -> dict[str, float]:
    """Mean cross-entropy and accuracy over samples, shared out among the workers; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = correct = 0.0
    mine = np.arange(rank, len(samples), world)
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            batch = samples.select(mine[start : start + batch_size]).to(device)
            logits = model((batch.pixels.float() / 255).contiguous(memory_format=torch.channels_last))
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            correct += (logits.argmax(1) == batch.labels).sum().item()
    model.train(was_training)
    loss, correct = _sum_over_workers([loss, correct], device)
    return {"loss": loss / len(samples), "accuracy": correct / len(samples), "correct": int(correct), "count": len(samples)}


def train(
    model: nn.Module,
    feed: Feed,
    validation: Samples,
    recipe: Recipe,
    objective: Objective,
    *,
    seed: int,
    optimizer: torch.optim.Optimizer,
    history: History,
    average: AveragedModel | None = None,
    teacher: nn.Module | None = None,
    compiled: Forward | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[str], None] = print,
) -> Iterator[History]:
    """Train epoch by epoch.

    Args:
        model: a `Classifier`, possibly wrapped for data parallelism, on its device.
        feed: this worker's batches.
        validation: validation images of all workers.
        history: rows of the epochs done before; training goes on behind them.
        average: moving average of the weights, kept up to date; it is what is evaluated.
        teacher: in evaluation mode on the same device, for a live objective.
        compiled: the model's forward pass in training, where that is another than the model's own.

    Yields:
        the history after each epoch, one row longer than the last.

    Raises:
        UserError: too few validation images for the workers.
        Diverged: the loss is no longer a number.
    """
    check_validation(len(validation), world)
    device = next(model.parameters()).device
    history, validation = list(history), validation.to(device)
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        model.train()
        scale = 0.75 if epoch <= recipe.low_resolution_epochs else 1.0
        total, correct = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
        seen = 0
        begin = spoke = time.monotonic()
        for step, batch in enumerate(feed.epoch(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (epoch - 1 + step / feed.steps) / recipe.epochs)
            loss, logits = compute_loss(compiled or model, batch, recipe, objective, seed=seed, epoch=epoch, teacher=teacher, scale=scale)
            optimizer.zero_grad()
            mine = len(batch.samples)
            # Gradients are averaged over workers: weighting by the share of the batch makes that the mean over images.
            (loss * (mine * world / batch.size)).backward()
            optimizer.step()
            if average is not None:
                average.update_parameters(unwrapped(model))
            total += loss.detach() * mine
            correct += (logits.detach().argmax(1) == batch.samples.labels).sum()
            seen += batch.size
            # Looking at a figure waits for the GPU.
            if (device.type == "cpu" or step % 50 == 0 or step == feed.steps - 1) and not math.isfinite(total.item()):
                raise Diverged(f"the loss became {loss.item()} in epoch {epoch}, step {step + 1}; try a lower --learning-rate")
            if time.monotonic() - spoke > 15:
                spoke = time.monotonic()
                rate = seen / (spoke - begin)
                progress(f"epoch {epoch}/{recipe.epochs}, {seen}/{feed.count} images, {rate:.0f} images/s, loss {loss.item():.3f}")
        loss_sum, hits = _sum_over_workers([total.item(), correct.item()], device)
        seconds = time.monotonic() - begin
        checked = evaluate_split(model if average is None else average, validation, rank, world)
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss_sum / seen,
                "train_accuracy": hits / seen,
                "validation_loss": checked["loss"],
                "validation_accuracy": checked["accuracy"],
                "seconds": round(seconds, 3),
            }
        )
        progress(
            f"epoch {epoch}/{recipe.epochs} done in {seconds:.0f} s ({seen / seconds:.0f} images/s): "
            f"loss {loss_sum / seen:.3f}, training accuracy {hits / seen:.1%}, validation {checked['accuracy']:.1%}"
        )
        yield list(history)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, out of the wrapper for data parallelism if it is in one."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
