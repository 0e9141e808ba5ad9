"""The term `map`: the student's own input-gradient map against the teacher's."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.config.optimisation import Objective
from igkd.networks.airbench import Largest
from igkd.networks.layers import twice_differentiable
from igkd.networks.network import Classifier, build
from igkd.training.augment import cutout, draw, map_targets
from igkd.training.batches import Batch
from igkd.training.loop import compute_loss, make_average, train_epoch
from igkd.training.optimizer import make_optimizer
from igkd.training.state import load_state, save_state
from igkd.training.terms.input_gradients import input_gradient_map, map_distance
from tests.helpers.training import TINY, learner, random_samples, recipe, resident, run, same_weights

MAPPED = Objective(map_weight=1.0, map_every=2)


def distance_by_hand(student: np.ndarray, teacher: np.ndarray, cell: int) -> float:
    total = 0.0
    for pair in zip(student, teacher, strict=True):
        height, width = pair[0].shape
        a, b = (
            np.array([m[y : y + cell, x : x + cell].mean() for y in range(0, height, cell) for x in range(0, width, cell)]) for m in pair
        )
        total += 1 - a @ b / np.sqrt((a @ a) * (b @ b)) if b.any() else 0.0
    return total / len(student)


@pytest.mark.parametrize("cell", [1, 3, 4, 20])
def test_the_distance_is_the_formula(cell: int) -> None:
    """Also where cells do not divide the map, are larger than it, and for an image without a map."""
    generator = np.random.default_rng(cell)
    student, teacher = generator.random((3, 8, 10)), generator.random((3, 8, 10))
    teacher[1] = 0
    expected = distance_by_hand(student, teacher, cell)
    assert map_distance(torch.tensor(student), torch.tensor(teacher), cell).item() == pytest.approx(expected, abs=1e-12)
    same = torch.tensor(student)
    assert map_distance(same, 3 * same, cell).item() == pytest.approx(0, abs=1e-12)


def test_the_students_map_is_input_x_gradient() -> None:
    """Of a linear network it is known: the weights times the distance from the baseline."""
    weight, pixels, labels = torch.randn(3, 3, 4, 5).double(), torch.rand(2, 3, 4, 5).double().requires_grad_(), torch.tensor([2, 0])
    origin = torch.tensor([0.4, 0.5, 0.6]).double().view(1, 3, 1, 1)
    logits = (pixels[:, None] * weight[None]).sum(dim=(2, 3, 4))
    got = input_gradient_map(logits, labels, pixels, origin)
    expected = ((pixels.detach() - origin) * weight[labels]).abs().sum(dim=1)
    torch.testing.assert_close(got.detach(), expected)


def test_a_dead_network_has_a_finite_gradient() -> None:
    weight, pixels = torch.zeros(3, 4, requires_grad=True), torch.rand(2, 3, 8, 8).requires_grad_()
    logits = (pixels.mean(dim=(2, 3)) @ weight).relu()
    map_distance(input_gradient_map(logits, torch.tensor([0, 1]), pixels, torch.zeros(1, 3, 1, 1)), torch.rand(2, 8, 8), 4).backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


class Attending(nn.Module):
    """Self-attention over pixels, by torch's one function for it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(rows, rows, rows)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])


LAYERS = {
    "depthwise": lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=4),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), groups=2, dilation=(1, 2)),
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "windows side by side": lambda: nn.MaxPool2d(2),
    "largest of all": Largest,
    "attention": Attending,
    "batch norm": lambda: nn.BatchNorm2d(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), LAYERS[name](), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Tanh(), nn.LazyLinear(3)).double()
    pixels, labels, target = torch.rand(2, 3, 7, 7).double().requires_grad_(), torch.tensor([2, 0]), torch.rand(2, 7, 7).double()
    network(pixels)

    def loss(weight: Tensor) -> Tensor:
        with twice_differentiable():
            logits = torch.func.functional_call(network, {"0.weight": weight}, (pixels,))
        return map_distance(input_gradient_map(logits, labels, pixels, torch.zeros(1, 1, 1, 1).double()), target, 2)

    assert torch.autograd.gradcheck(loss, (network[0].weight.detach().requires_grad_(),))  # type: ignore[operator]


def loss_at(number: int, objective: Objective = MAPPED, model: nn.Module | None = None, **more: Any) -> Tensor:
    scale = more.pop("scale", 1.0)
    samples, how = random_samples(6), recipe(**more.pop("how", {}))
    batch = Batch(samples, draw(0, 1, samples.ids, samples.shape, how, objective), 6)
    return compute_loss(learner(model or build(TINY, 1).train(), how, objective, **more), batch, 1, scale, number)[0]


def test_maps_are_compared_in_every_nth_step() -> None:
    plain = loss_at(0, Objective())
    assert loss_at(1) == loss_at(3) == plain
    extra = loss_at(0) - plain
    assert 0 < extra.item() < 1 and loss_at(2) == loss_at(0)
    torch.testing.assert_close(loss_at(0, Objective(map_weight=3.0)) - plain, 3 * extra)


def test_a_step_counts_once_in_batch_norms_and_uses_no_compiled_code() -> None:
    def compiled(*inputs: Any) -> Any:
        raise AssertionError("compiled code has no second derivative")

    model = build(TINY, 1).train()
    loss_at(0, model=model, compiled=compiled).backward()
    counts = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}
    with pytest.raises(AssertionError, match="no second derivative"):
        loss_at(1, compiled=compiled)


def test_bfloat16_and_low_resolution_give_nearly_the_same_loss() -> None:
    exact = loss_at(0, how={"precision": "float32"})
    assert loss_at(0, how={"precision": "bfloat16"}).item() == pytest.approx(exact.item(), rel=0.05)
    small = loss_at(0, scale=0.75)
    small.backward()
    assert small.isfinite()


def test_targets_have_no_overlaid_image_and_nothing_behind_the_cutout() -> None:
    samples, how, objective = random_samples(8), recipe(cutout=6), Objective(map_weight=1.0, overlay=0.5)
    draws = draw(0, 1, samples.ids, samples.shape, how, objective)
    plain = map_targets(samples, draws, recipe(), Objective(map_weight=1.0), 0, 1)
    got = map_targets(samples, draws, how, objective, 0, 1)
    assert 0 < draws.overlaid.sum() < 8 and not got[draws.overlaid].any()
    seen = cutout(torch.ones(8, 1, 16, 16), draws.hidden_y, draws.hidden_x, 6)[:, 0] == 1
    assert torch.equal(got[~draws.overlaid], (plain * seen)[~draws.overlaid])
    noise = map_targets(samples, draws, recipe(), Objective(map_weight=1.0, content="noise"), 0, 1)
    assert not torch.equal(noise, plain) and torch.equal(noise.flatten(1).sort().values, plain.flatten(1).sort().values)


@pytest.mark.parametrize("values", [{"map_weight": -1.0}, {"map_every": 0}, {"map_cell": 0}, {"map_weight": 1.0, "content": "black"}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Objective(**values)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    samples, how = random_samples(17), recipe(epochs=2)  # 3 steps an epoch: the comparison falls on other steps of the second
    whole, again = build(TINY, 0), build(TINY, 0)
    run(whole, samples, how, 3, MAPPED)
    first = make_optimizer(again, how)
    own = learner(again, how, MAPPED, 3, optimizer=first)
    train_epoch(own, resident(samples, how, MAPPED, 3), 1)
    history = [{"epoch": 1, "train_loss": 0.0, "train_accuracy": 0.0, "validation_loss": 0.0, "validation_accuracy": 0.0, "seconds": 0.0}]
    save_state(tmp_path, again, first, history, make_average(again, how))
    resumed = build(TINY, 5)
    optimizer = make_optimizer(resumed, how)
    run(resumed, samples, how, 3, MAPPED, optimizer=optimizer, history=load_state(tmp_path, resumed, optimizer))
    assert same_weights(whole, resumed)


def test_a_student_learns_to_look_where_it_is_told() -> None:
    """Its maps come nearer to one that has nothing to do with the images; without the term they do not."""
    samples, how = random_samples(8), recipe(epochs=12, padding=0, learning_rate=0.02)
    rows = torch.arange(16.0)
    samples = samples.with_signals(ig=(rows[:, None] + 0 * rows).square().expand(8, 16, 16).contiguous())

    def distance(network: Classifier) -> float:
        network = copy.deepcopy(network).train()
        pixels = (samples.pixels.float() / 255).requires_grad_()
        return map_distance(input_gradient_map(network(pixels), samples.labels, pixels, network.mean), samples.signals["ig"], 4).item()

    before = distance(build(TINY, 0))
    for weight in (10.0, 0.0):
        model = build(TINY, 0)
        run(model, samples, how, 0, Objective(map_weight=weight, map_every=1))
        assert (distance(model) < 0.8 * before) == (weight > 0)
