"""One training run, of a teacher or a student: step, epoch, schedule, evaluation, resumption.

The loop knows nothing of Ray. It is an iterator of epochs, so its caller decides what happens between them (report, checkpoint, stop).
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from igkd.augment import crop_flip, draw_overlay, draw_view, move_attention, overlay
from igkd.config import Objective, Recipe
from igkd.errors import UserError
from igkd.files import read_json, write_bytes, write_json
from igkd.losses import attention_map, attention_transfer, distillation
from igkd.randomness import shuffled
from igkd.samples import Samples

History = list[dict[str, Any]]


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate at a fraction of the run: one cycle (Smith, Topin 2018) of linear warm-up over the first fifth, then a cosine to 0."""
    if recipe.optimizer == "adam":
        return recipe.learning_rate
    if progress < 0.2:
        return recipe.learning_rate * max(progress / 0.2, 0.01)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters; its learning rate is set anew at every step."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)


def epoch_batches(seed: int, epoch: int, ids: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions (int64) of each step's images: every image once, in an order fixed by (seed, epoch, ids), in batches as equal as can be."""
    order = shuffled(seed, f"epoch {epoch} order", ids)
    return np.array_split(order, math.ceil(len(order) / batch_size))


def compute_loss(
    model: nn.Module, samples: Samples, objective: Objective, *, seed: int, epoch: int, padding: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Augment one batch, overlay it, and compute the total loss: alpha KD + (1 - alpha) CE + gamma AT.

    Args:
        model: maps (pixels, tap) to logits or (logits, features), as `Classifier.forward` does.
        samples: the batch, on the model's device; `ig`, `logits`, `attention` where the objective needs them.
        scale: factor on image sides (progressive resizing).

    Returns:
        scalar loss (mean over the batch) and logits (B, classes).
    """
    view = draw_view(seed, epoch, samples.ids, padding)
    pixels = crop_flip(samples.pixels, view).float() / 255
    if objective.overlay > 0:
        assert samples.ig is not None
        chosen, exponent = draw_overlay(seed, epoch, samples.ids, objective.overlay, objective.exponents)
        rows = chosen.nonzero().squeeze(1).to(pixels.device)
        if len(rows):
            maps = crop_flip(samples.ig, view)[rows]
            pixels = pixels.index_copy(0, rows, overlay(pixels[rows], maps, exponent.to(pixels.device)[rows]))
    if scale != 1.0:
        size = [round(side * scale) for side in samples.shape]
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if objective.gamma > 0:
        assert samples.attention is not None and objective.tap is not None
        logits, features = model(pixels, objective.tap)
    else:
        logits = model(pixels)
    loss = (1 - objective.alpha) * F.cross_entropy(logits, samples.labels)
    if objective.alpha > 0:
        assert samples.logits is not None
        loss = loss + objective.alpha * distillation(logits, samples.logits, objective.temperature)
    if objective.gamma > 0:
        assert samples.attention is not None
        teacher = move_attention(samples.attention, view, samples.shape)
        loss = loss + objective.gamma * attention_transfer(attention_map(features), teacher)
    return loss, logits


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
    samples: Samples,
    validation: Samples,
    recipe: Recipe,
    objective: Objective,
    *,
    seed: int,
    optimizer: torch.optim.Optimizer,
    history: History,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[str], None] = print,
) -> Iterator[History]:
    """Train epoch by epoch.

    The order of images, their crops and overlays are functions of (seed, epoch, id) and do not depend on `world`; worker `rank` takes
    every world-th image of each batch, and every image is seen once an epoch.

    Args:
        model: a `Classifier`, possibly wrapped for data parallelism, on its device.
        samples, validation: training and validation images.
        history: rows of the epochs done before; training goes on behind them.

    Yields:
        the history after each epoch, one row longer than the last.

    Raises:
        UserError: too few images or too small batches for the workers, or the loss is no longer a number.
    """
    for name, count, least in (("training", len(samples), max(2, world)), ("validation", len(validation), world)):
        if count < least:
            raise UserError(f"{count} {name} image(s) are too few for {world} worker(s); it takes at least {least}")
    if len(samples) // math.ceil(len(samples) / recipe.batch_size) < world:
        raise UserError(f"batches of {recipe.batch_size} are too small for {world} workers; use --batch-size {2 * world} or more")
    device = next(model.parameters()).device
    history = list(history)
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        model.train()
        batches = epoch_batches(seed, epoch, samples.ids, recipe.batch_size)
        scale = 0.75 if epoch <= recipe.low_resolution_epochs else 1.0
        total = correct = 0.0
        begin = spoke = time.monotonic()
        for step, positions in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (epoch - 1 + step / len(batches)) / recipe.epochs)
            batch = samples.select(positions[rank::world]).to(device)
            loss, logits = compute_loss(model, batch, objective, seed=seed, epoch=epoch, padding=recipe.padding, scale=scale)
            optimizer.zero_grad()
            # Gradients are averaged over workers: weighting by the share of the batch makes that the mean over images.
            (loss * (len(batch) * world / len(positions))).backward()
            optimizer.step()
            total += loss.item() * len(batch)
            correct += (logits.detach().argmax(1) == batch.labels).sum().item()
            if not math.isfinite(total):
                raise UserError(f"the loss became {loss.item()} in epoch {epoch}, step {step + 1}; try a lower --learning-rate")
            if time.monotonic() - spoke > 15:
                spoke = time.monotonic()
                seen = sum(map(len, batches[: step + 1]))
                rate = seen / (spoke - begin)
                progress(f"epoch {epoch}/{recipe.epochs}, {seen}/{len(samples)} images, {rate:.0f} images/s, loss {loss.item():.3f}")
        total, correct = _sum_over_workers([total, correct], device)
        seconds = time.monotonic() - begin
        checked = evaluate_split(model, validation, rank, world)
        history.append(
            {
                "epoch": epoch,
                "train_loss": total / len(samples),
                "train_accuracy": correct / len(samples),
                "validation_loss": checked["loss"],
                "validation_accuracy": checked["accuracy"],
                "seconds": round(seconds, 3),
            }
        )
        progress(
            f"epoch {epoch}/{recipe.epochs} done in {seconds:.0f} s ({len(samples) / seconds:.0f} images/s): "
            f"loss {total / len(samples):.3f}, training accuracy {correct / len(samples):.1%}, validation {checked['accuracy']:.1%}"
        )
        yield list(history)


def save_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
    """Write everything that `load_state` needs to go on, as safetensors and JSON."""
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.detach().cpu().contiguous() for k, v in state.items() if v is not None}
    write_bytes(directory / "state.safetensors", safetensors.torch.save(tensors))
    write_json(directory / "history.json", history)


def load_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> History:
    """Restore model and optimizer in place; gives the history of the epochs done."""
    tensors = safetensors.torch.load_file(directory / "state.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return list(read_json(directory / "history.json"))
