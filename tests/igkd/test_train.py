import datetime
import itertools
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from igkd.augment import draw_overlay, draw_view
from igkd.config import ARMS, Arm, DistillConfig, Objective, Recipe
from igkd.errors import UserError
from igkd.models import Classifier, ModelSpec, build
from igkd.samples import Samples
from igkd.train import (
    History,
    compute_loss,
    epoch_batches,
    evaluate_split,
    learning_rate,
    load_state,
    make_optimizer,
    save_state,
    train,
)

TINY = ModelSpec(classes=("a", "b", "c"), image_shape=(16, 16), cut=11, width=0.35)


def recipe(**changes: Any) -> Recipe:
    return Recipe(
        **({"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4, "epochs": 3, "batch_size": 8, "padding": 2} | changes)
    )


def random_samples(count: int, seed: int = 0, size: int = 16) -> Samples:
    """Images with maps, logits and 8x8 attention, all of them noise."""
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        ids=np.arange(count) * 3 + 100,
        pixels=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        labels=torch.randint(0, 3, (count,), generator=generator),
        ig=torch.rand(count, size, size, generator=generator),
        logits=2 * torch.randn(count, 3, generator=generator),
        attention=nn.functional.normalize(torch.rand(count, 64, generator=generator)).view(count, 8, 8),
    )


def quiet(line: str) -> None:
    assert "epoch" in line


def run(model: nn.Module, samples: Samples, how: Recipe, seed: int = 0, objective: Objective | None = None, **rest: Any) -> History:
    rest = {"optimizer": make_optimizer(model, how), "history": [], "validation": random_samples(5, seed=9), "progress": quiet} | rest
    rows = list(train(model, samples, recipe=how, objective=objective or Objective(), seed=seed, **rest))
    return rows[-1] if rows else rest["history"]


def without_seconds(history: History) -> History:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Watcher(nn.Module):
    """A linear classifier that notes which images it was trained on, read off the corner that all of an image's pixels share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.steps: list[list[int]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        if self.training:
            self.steps.append((pixels[:, 0, 0, 0] * 255).round().int().tolist())
        return self.linear(pixels.mean(dim=(2, 3)))


def plain_samples(count: int) -> Samples:
    """Image i is a plain area of value i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Samples(np.arange(count) + 5, pixels, torch.arange(count) % 3)


# Batches


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 99), st.integers(1, 99))
def test_batches_hold_every_image_once(count: int, size: int, seed: int, epoch: int) -> None:
    ids = np.arange(count) * 7 + 3
    batches = epoch_batches(seed, epoch, ids, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(b) for b in batches]
    assert len(sizes) == math.ceil(count / size) and max(sizes) <= size and max(sizes) - min(sizes) <= 1
    again = epoch_batches(seed, epoch, ids, size)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_the_order_changes_with_epoch_and_seed() -> None:
    ids = np.arange(100)
    orders = [np.concatenate(epoch_batches(seed, epoch, ids, 9)).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert all(a != b for a, b in itertools.combinations([*orders, list(range(100))], 2))


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_out_the_steps_of_one_worker(world: int) -> None:
    samples, how = plain_samples(23), recipe(batch_size=7, padding=0, epochs=2)

    def steps(rank: int, world: int) -> list[list[int]]:
        watcher = Watcher()
        run(watcher, samples, how, rank=rank, world=world, validation=plain_samples(4))
        return watcher.steps

    alone, together = steps(0, 1), [steps(rank, world) for rank in range(world)]
    assert [sorted(itertools.chain(*alone[e : e + 4])) for e in (0, 4)] == [list(range(23))] * 2
    for step, shares in zip(alone, zip(*together, strict=True), strict=True):
        assert sorted(itertools.chain(*shares)) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Loss


def loss_by_hand(model: Classifier, samples: Samples, objective: Objective, seed: int, epoch: int) -> float:
    """alpha KD + (1 - alpha) CE + gamma AT without crops, image by image in double precision; the network alone is torch's."""
    assert samples.ig is not None and samples.logits is not None and samples.attention is not None
    flips = draw_view(seed, epoch, samples.ids, 0).flip.tolist()
    chosen, exponents = draw_overlay(seed, epoch, samples.ids, objective.overlay, objective.exponents)
    assert 0 < sum(flips) < len(flips)
    total = 0.0
    for i, flip in enumerate(flips):
        image, ig, attention = (t[i].double().numpy() for t in (samples.pixels, samples.ig, samples.attention))
        if flip:
            image, ig, attention = image[:, :, ::-1], ig[:, ::-1], attention[:, ::-1]
        image = image / 255
        if chosen[i]:
            powered = ig ** float(exponents[i])
            image = 0.5 * image + 0.5 * (powered - powered.min()) / (powered.max() - powered.min())
        with torch.no_grad():
            x = (torch.tensor(image.copy())[None] - model.mean) / model.std
            outputs = [x := layer(x) for layer in model.features]
            logits = model.classifier(x.mean(dim=(2, 3)))[0].numpy()
        cross_entropy = np.log(np.exp(logits).sum()) - logits[samples.labels[i]]
        temperature = objective.temperature
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (logits, samples.logits[i].double().numpy()))
        distillation = temperature**2 * (q * np.log(q / p)).sum()
        total += (1 - objective.alpha) * cross_entropy + objective.alpha * distillation
        if objective.gamma:
            assert objective.tap is not None
            energy = (outputs[objective.tap][0].numpy() ** 2).mean(axis=0)
            total += objective.gamma * ((attention - energy / np.sqrt((energy**2).sum())) ** 2).mean()
    return total / len(flips)


WEIGHTS = {"kd": "alpha", "ig": "overlay", "at": "gamma"}


@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_of_every_arm_is_the_formula(arm: Arm) -> None:
    config = DistillConfig(store="s", test_images="t", out="o", arm=arm, cut=11, alpha=0.3, temperature=3.0, gamma=40.0, overlay=0.5)
    objective, samples = config.objective, random_samples(10)
    for part, weight in WEIGHTS.items():
        assert getattr(objective, weight) == (getattr(config, weight) if part in arm.split("+") else 0)
    model = build(TINY, 1).double().eval()
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    loss, logits = compute_loss(model.float(), samples, objective, seed=4, epoch=2, padding=0)
    assert logits.shape == (10, 3)
    assert loss.item() == pytest.approx(loss_by_hand(model.double(), samples, objective, 4, 2), rel=1e-4)


def test_no_two_arms_have_the_same_loss_and_none_needs_what_it_does_not_use() -> None:
    model, whole = build(TINY, 1).eval(), random_samples(10)
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    values = []
    for arm in ARMS:
        objective = DistillConfig(store="s", test_images="t", out="o", arm=arm, cut=11, alpha=0.3, gamma=40.0, overlay=0.5).objective
        needed = {
            field: getattr(whole, field) for part, field in (("ig", "ig"), ("kd", "logits"), ("at", "attention")) if part in arm.split("+")
        }
        loss, _ = compute_loss(model, Samples(whole.ids, whole.pixels, whole.labels, **needed), objective, seed=4, epoch=2, padding=2)
        values.append(loss.item())
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 1e-5


def test_every_part_of_the_loss_reaches_the_weights() -> None:
    samples = random_samples(6)
    for objective in (Objective(alpha=1.0), Objective(alpha=0.5, gamma=1.0, tap=4), Objective(overlay=1.0)):
        model = build(TINY, 1)
        compute_loss(model, samples, objective, seed=0, epoch=1, padding=2)[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert any(p.grad is not None and p.grad.any() for p in model.features[0].parameters())


def test_a_smaller_scale_shows_the_network_smaller_images() -> None:
    sizes = []
    model = build(TINY, 1).eval()
    model.features[0].register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    for scale in (1.0, 0.75):
        compute_loss(model, random_samples(4), Objective(), seed=0, epoch=1, padding=2, scale=scale)
    assert sizes == [(16, 16), (12, 12)]


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 10, 250])
def test_evaluation_is_accuracy_and_cross_entropy_by_hand(batch_size: int) -> None:
    model, samples = build(TINY, 2).train(), random_samples(37)
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = evaluate_split(model, samples, batch_size=batch_size)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(samples.pixels.float() / 255).double().numpy()
    truth = samples.labels.numpy()
    loss = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in zip(logits, truth, strict=True)]
    correct = int((logits.argmax(axis=1) == truth).sum())
    assert 0 < correct < 37
    assert (result["correct"], result["count"]) == (correct, 37)
    assert result["accuracy"] == correct / 37
    assert result["loss"] == pytest.approx(sum(loss) / 37, rel=1e-5)
    evaluate_split(model, samples)
    assert not model.training


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_evaluate_every_image_once(world: int) -> None:
    model, samples = build(TINY, 2).eval(), random_samples(5)
    whole = evaluate_split(model, samples)
    # Nothing is summed where no process group is: each worker gives its own share.
    parts = [evaluate_split(model, samples, rank, world, batch_size=2) for rank in range(world)]
    assert sum(p["correct"] for p in parts) == whole["correct"]
    assert sum(p["loss"] for p in parts) == pytest.approx(whole["loss"], rel=1e-5)


# Schedule


def test_the_one_cycle_schedule() -> None:
    how = recipe(learning_rate=0.4)
    points = {0.0: 0.004, 0.1: 0.2, 0.2: 0.4, 0.6: 0.2, 1.0: 0.0}
    assert [learning_rate(how, p) for p in points] == pytest.approx(list(points.values()))
    rates = [learning_rate(how, k / 1000) for k in range(1001)]
    assert all(a <= b for a, b in itertools.pairwise(rates[:201])) and all(a > b for a, b in itertools.pairwise(rates[200:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.005


def test_adam_has_a_constant_rate() -> None:
    assert {learning_rate(recipe(optimizer="adam", learning_rate=1e-3), k / 100) for k in range(101)} == {1e-3}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_the_optimizer_follows_the_recipe(name: str, kind: type) -> None:
    how = recipe(optimizer=name, epochs=2, batch_size=4, padding=0)
    model = Watcher()
    optimizer = make_optimizer(model, how)
    assert type(optimizer) is kind and optimizer.param_groups[0]["weight_decay"] == 5e-4
    run(model, plain_samples(12), how, optimizer=optimizer, validation=plain_samples(4))
    assert optimizer.param_groups[0]["lr"] == learning_rate(how, 5 / 6)


def test_one_step_of_sgd_by_hand() -> None:
    how = recipe(epochs=1, batch_size=12, padding=0, weight_decay=0.0, learning_rate=2.0)
    model, twin, samples = Watcher(), Watcher(), plain_samples(12)
    twin.load_state_dict(model.state_dict())
    x, y = samples.pixels[:, :, 0, 0].double().numpy() / 255, np.eye(3)[samples.labels.numpy()]
    weight, bias = (p.detach().double().numpy() for p in (twin.linear.weight, twin.linear.bias))
    powers = np.exp(x @ weight.T + bias)
    excess = (powers / powers.sum(axis=1, keepdims=True) - y) / 12
    run(model, samples, how, validation=plain_samples(4))
    # The first step is at 1 % of the peak; Nesterov momentum makes the first step 1.9 gradients.
    np.testing.assert_allclose(model.linear.weight.detach(), weight - 0.02 * 1.9 * excess.T @ x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.linear.bias.detach(), bias - 0.02 * 1.9 * excess.sum(axis=0), rtol=1e-4, atol=1e-6)


# Whole runs

EVERYTHING = Objective(alpha=0.3, gamma=1.0, overlay=0.5, tap=4)


def test_a_seed_fixes_every_bit_of_a_run() -> None:
    def result(seed: int, weights: int = 0) -> tuple[Classifier, History]:
        model = build(TINY, weights)
        return model, without_seconds(run(model, random_samples(24), recipe(epochs=2), seed, EVERYTHING))

    one = result(1)
    torch.rand(7)
    np.random.default_rng(0).random(7)
    two, other = result(1), result(2)
    assert same_weights(one[0], two[0]) and one[1] == two[1]
    assert not same_weights(one[0], other[0]) and one[1] != other[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_ends_in_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    how, samples = recipe(optimizer=optimizer, learning_rate=0.01), random_samples(24)
    undisturbed = build(TINY, 0)
    expected = run(undisturbed, samples, how, objective=EVERYTHING)
    first = build(TINY, 0)
    first_optimizer = make_optimizer(first, how)
    rows = train(
        first, samples, random_samples(5, seed=9), how, EVERYTHING, seed=0, optimizer=first_optimizer, history=[], progress=quiet
    )  # fmt: skip
    save_state(tmp_path / "state", first, first_optimizer, next(rows))
    second = build(TINY, 77)
    second_optimizer = make_optimizer(second, how)
    history = load_state(tmp_path / "state", second, second_optimizer)
    assert len(history) == 1 and same_weights(first, second)
    resumed = run(second, samples, how, objective=EVERYTHING, optimizer=second_optimizer, history=history)
    assert len(resumed) == 3
    assert without_seconds(resumed) == without_seconds(expected)
    assert same_weights(second, undisturbed)


def test_without_the_optimizers_state_a_run_would_end_elsewhere(tmp_path: Path) -> None:
    """The test above would be worth nothing if momentum did not matter."""
    how, samples = recipe(learning_rate=0.01), random_samples(24)
    ends = []
    for keep in (True, False):
        model = build(TINY, 0)
        optimizer = make_optimizer(model, how)
        rows = train(model, samples, random_samples(5), how, Objective(), seed=0, optimizer=optimizer, history=[], progress=quiet)
        history = next(rows)
        run(model, samples, how, optimizer=optimizer if keep else make_optimizer(model, how), history=history)
        ends.append(model)
    assert not same_weights(*ends)


def test_a_finished_run_has_nothing_left_to_do() -> None:
    model = build(TINY, 0)
    history = [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    assert run(model, random_samples(24), recipe(), history=history) == history
    assert same_weights(model, build(TINY, 0))


def test_history_says_what_happened() -> None:
    model, validation = build(TINY, 0), random_samples(11, seed=5)
    given: History = []
    history = run(model, random_samples(24), recipe(), validation=validation, history=given)
    assert given == [] and [row["epoch"] for row in history] == [1, 2, 3]
    checked = evaluate_split(model, validation)
    assert (history[-1]["validation_loss"], history[-1]["validation_accuracy"]) == (checked["loss"], checked["accuracy"])
    assert all(0 <= row["train_accuracy"] <= 1 and row["seconds"] > 0 for row in history)


def test_a_network_learns() -> None:
    """Red, green and blue pictures in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    light = 60 * nn.functional.one_hot(labels, 3).view(64, 3, 1, 1) + 120 * torch.rand(64, 3, 16, 16, generator=generator)
    samples = Samples(np.arange(64), light.to(torch.uint8), labels)
    for how in (recipe(epochs=8, batch_size=16), recipe(optimizer="adam", learning_rate=3e-3, epochs=8, batch_size=16)):
        history = run(build(TINY, 0), samples, how, validation=samples)
        assert history[0]["train_loss"] > 0.8
        assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
        assert history[-1]["train_accuracy"] > 0.8


# Refusals


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss became .* in epoch \d, step \d.*--learning-rate"):
        run(Watcher(), plain_samples(12), recipe(learning_rate=1e38, padding=0, epochs=9), validation=plain_samples(4))


@pytest.mark.parametrize(("count", "size", "world"), [(1, 8, 1), (2, 8, 3), (5, 2, 2), (9, 1, 2)])
def test_too_few_images_for_the_workers_are_refused(count: int, size: int, world: int) -> None:
    """The last two have images enough, but a step that leaves a worker without any, whose mean loss would not be a number."""
    for rank in range(world):
        with pytest.raises(UserError, match=r"too few|too small"):
            run(Watcher(), plain_samples(count), recipe(batch_size=size), rank=rank, world=world)


@pytest.mark.parametrize(("count", "world"), [(0, 1), (1, 2)])
def test_too_few_validation_images_are_refused(count: int, world: int) -> None:
    with pytest.raises(UserError, match=r"validation image.* too few"):
        run(Watcher(), plain_samples(9), recipe(), validation=plain_samples(count), world=world)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 6, 9])
def test_the_batch_size_that_a_refusal_recommends_is_enough(batch_size: int) -> None:
    for count, world in itertools.product(range(2, 40), range(1, batch_size // 2 + 1)):
        if count >= world:
            assert all(len(batch) >= world for batch in epoch_batches(0, 1, np.arange(count), batch_size))


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"overlay": 2.0},
        {"gamma": -1.0},
        {"temperature": 0.0},
        {"exponents": (0.0, 1.0)},
        {"exponents": (2.0, 1.0)},
    ],
    ids=str,
)
def test_an_objective_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Objective(**values)


# Two processes


def work(rank: int, rendezvous: str) -> tuple[Tensor, History, list[dict[str, float]]]:
    """One of two workers: train data-parallel, and evaluate a split whose shares take different numbers of batches."""
    patience = datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=patience)
    try:
        torch.manual_seed(0)
        watcher = Watcher()
        how = recipe(batch_size=7, padding=0)
        history = run(DistributedDataParallel(watcher), plain_samples(23), how, rank=rank, world=2, validation=plain_samples(9))
        student = DistributedDataParallel(build(TINY, 0))
        evaluations = [evaluate_split(student, random_samples(9), rank, 2, batch_size=size) for size in (1, 4, 250)]
    finally:
        dist.destroy_process_group()
    return watcher.linear.weight.detach(), history, evaluations


def second_worker(rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.save(work(1, rendezvous), out)


def test_two_processes_do_the_work_of_one(tmp_path: Path) -> None:
    """Batches of 23 images in steps of 7 are uneven, and so are their halves: gradients must still be means over images."""
    rendezvous, out = str(tmp_path / "rendezvous"), tmp_path / "result"
    process = multiprocessing.get_context("spawn").Process(target=second_worker, args=(rendezvous, str(out)))
    process.start()
    try:
        first = work(0, rendezvous)
        process.join(300)
    finally:
        process.kill()
        process.join()
    torch.manual_seed(0)
    alone = Watcher()
    history = run(alone, plain_samples(23), recipe(batch_size=7, padding=0), validation=plain_samples(9))
    expected = evaluate_split(build(TINY, 0), random_samples(9))
    for weight, rows, evaluations in (first, torch.load(out, weights_only=True)):
        torch.testing.assert_close(weight, alone.linear.weight.detach(), rtol=1e-4, atol=1e-6)
        for one, two in zip(without_seconds(rows), without_seconds(history), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        assert len(evaluations) == 3 and all(e == pytest.approx(expected, rel=1e-5) for e in evaluations)
