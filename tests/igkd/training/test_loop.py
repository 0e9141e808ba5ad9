import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from igkd.base.choices import ARMS, Arm
from igkd.base.errors import UserError
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Objective
from igkd.config.precompute import PrecomputeConfig
from igkd.config.teacher import TeacherConfig
from igkd.images.samples import Samples
from igkd.images.views import draw_view
from igkd.networks.network import Classifier, NetworkSpec, build, values_a_channel
from igkd.store import Store
from igkd.training.augment import draw_overlay
from igkd.training.batches import epoch_batches, joined
from igkd.training.loop import evaluate_split, train
from igkd.training.optimizer import learning_rate, make_optimizer
from igkd.training.state import History, load_state, save_state
from igkd.training.student_data import check_student, student_spec
from igkd.training.task import check_batch_size
from igkd.training.teacher_data import check_teacher
from tests.helpers.stores import make_store
from tests.helpers.training import (
    TINY,
    Watcher,
    learner,
    loss_of,
    plain_samples,
    random_samples,
    recipe,
    resident,
    run,
    same_weights,
    without_seconds,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 99), st.integers(1, 99))
def test_batches_hold_every_image_once(count: int, size: int, seed: int, epoch: int) -> None:
    ids = np.arange(count) * 7 + 3
    batches = epoch_batches(seed, epoch, ids, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(b) for b in batches]
    assert max(sizes) - min(sizes) <= 1
    if size == 2 and count % 2 and count > 1:
        assert len(sizes) == count // 2 and max(sizes) == 3  # rather than one image alone
    else:
        assert len(sizes) == math.ceil(count / size) and max(sizes) <= size
    assert min(sizes) > 1 or size == 1 or count == 1
    again = epoch_batches(seed, epoch, ids, size)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80))
def test_a_stream_leaves_no_image_alone(count: int, size: int) -> None:
    given = [{"ids": np.arange(start, min(start + size, count))} for start in range(0, count, size)]
    found = [batch["ids"].tolist() for batch in joined(given)]
    assert sum(found, []) == list(range(count))
    sizes = [len(ids) for ids in found]
    assert set(sizes[:-1]) <= {size} and sizes[-1] <= size + 1
    assert min(sizes) > 1 or size == 1 or count == 1


ONE_PIXEL = replace(TINY, name="mobilenet", image_shape=(8, 8))


@pytest.mark.parametrize(("count", "size"), [(9, 2), (3, 2), (2, 2), (5, 4), (9, 8), (17, 16)])
def test_a_network_whose_last_maps_have_one_pixel_trains_on_any_number_of_images(count: int, size: int) -> None:
    assert values_a_channel(ONE_PIXEL) == 1
    history = run(
        build(ONE_PIXEL, 0),
        random_samples(count, size=8),
        recipe(batch_size=size, epochs=1, padding=0),
        validation=random_samples(1, size=8),
    )
    assert math.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("spec", "scale", "pixels"),
    [
        (TINY, 1.0, 16),
        (ONE_PIXEL, 1.0, 1),
        (replace(TINY, name="mobilenet"), 1.0, 4),
        (replace(TINY, name="mobilenet"), 0.5, 1),
        (replace(TINY, name="mobilenet:stride=2"), 1.0, 1),
        (replace(TINY, name="lean:4:8x1,8x1"), 1.0, 4),
    ],
)
def test_values_a_channel_are_the_pixels_of_the_smallest_maps(spec: NetworkSpec, scale: float, pixels: int) -> None:
    assert values_a_channel(spec, scale) == pixels
    height, width = (round(side * scale) for side in spec.image_shape)
    assert build(spec, 0).network.features(torch.zeros(2, 3, height, width)).shape[2:].numel() == pixels  # the last are the smallest


def test_batches_of_one_are_refused_where_a_channel_has_one_value() -> None:
    with pytest.raises(UserError, match="--batch-size 1 is too small: at 8x8 pixels .* use --batch-size 2"):
        check_batch_size(ONE_PIXEL, recipe(batch_size=1))
    check_batch_size(replace(ONE_PIXEL, image_shape=(10, 10)), recipe(batch_size=1))
    with pytest.raises(UserError, match="at 8x8 pixels"):  # which it sees in its first epoch
        check_batch_size(replace(ONE_PIXEL, image_shape=(10, 10)), recipe(batch_size=1, low_resolution_epochs=1))
    check_batch_size(ONE_PIXEL, recipe(batch_size=2))
    check_batch_size(TINY, recipe(batch_size=1))
    history = run(build(TINY, 0), random_samples(3), recipe(batch_size=1, epochs=1))
    assert math.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 1, "image_size": 8}, "--batch-size 1 is too small: at 8x8 pixels"),
        ({"batch_size": 1, "image_size": 16, "network": "mobilenet:stride=2"}, "at 16x16 pixels"),
        ({"batch_size": 3, "workers": 4}, "batches of 3 are too small for 4 workers"),
        ({"images": "shapes:train=2", "workers": 3}, "2 training image.* too few for 3 worker"),
        ({"images": "shapes:train=9"}, "0 validation image.* too few"),
    ],
)
def test_a_teacher_is_refused_before_its_pictures_are_read(changes: dict[str, Any], sentence: str) -> None:
    sound: dict[str, Any] = {"images": "shapes:train=60", "out": "o", "batch_size": 8}
    check_teacher(TeacherConfig(**sound))
    check_teacher(TeacherConfig(**sound | {"batch_size": 1}))  # its maps have 4x4 pixels
    with pytest.raises(UserError, match=sentence):
        check_teacher(TeacherConfig(**sound | changes))


def test_a_student_is_refused_before_a_picture_is_read(teacher: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    make_store(PrecomputeConfig(images="shapes:train=40", teacher=teacher, store=store, steps=2, engine="captum"))
    sound: dict[str, Any] = {"store": store, "out": "o", "arm": "kd"}
    for changes, sentence in (
        ({"workers": 5, "batch_size": 4}, "batches of 4 are too small for 5 workers"),
        ({"share": 0.02, "workers": 1}, "1 training image.* too few"),
        ({"workers": 5}, "4 validation image.* too few for 5 worker"),
    ):
        check_student(DistillConfig(**sound), Store.open(store))
        with pytest.raises(UserError, match=sentence):
            check_student(DistillConfig(**sound | changes), Store.open(store))
    small = replace(Store.open(store).plan, image_shape=(8, 8))
    with pytest.raises(UserError, match="at 8x8 pixels"):
        check_batch_size(student_spec(DistillConfig(**sound, student="lean:4:8x1,8x1", batch_size=1), small), recipe(batch_size=1))


def test_the_order_changes_with_epoch_and_seed() -> None:
    ids = np.arange(100)
    orders = [np.concatenate(epoch_batches(seed, epoch, ids, 9)).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert all(a != b for a, b in itertools.combinations([*orders, list(range(100))], 2))


def loss_by_hand(model: Classifier, samples: Samples, objective: Objective, seed: int, epoch: int) -> float:
    """alpha KD + (1 - alpha) CE + gamma AT without crops, image by image in double precision; the network alone is torch's."""
    assert samples.ig is not None and samples.logits is not None and samples.signals["attention"] is not None
    flips = draw_view(seed, epoch, samples.ids, 0).flip.tolist()
    chosen, exponents = draw_overlay(seed, epoch, samples.ids, objective.overlay, objective.exponents)
    assert 0 < sum(flips) < len(flips)
    total = 0.0
    for i, flip in enumerate(flips):
        image, ig, attention = (t[i].double().numpy() for t in (samples.pixels, samples.ig, samples.signals["attention"]))
        if flip:
            image, ig, attention = image[:, :, ::-1], ig[:, ::-1], attention[:, ::-1]
        image = image / 255
        if chosen[i]:
            powered = ig ** float(exponents[i])
            image = 0.5 * image + 0.5 * (powered - powered.min()) / (powered.max() - powered.min())
        with torch.no_grad():
            x = (torch.tensor(image.copy())[None] - model.mean) / model.std
            outputs = [x := layer(x) for layer in model.network.features]
            logits = model.network.classifier(x.mean(dim=(2, 3)))[0].numpy()
        cross_entropy = np.log(np.exp(logits).sum()) - logits[samples.labels[i]]
        temperature = objective.temperature
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (logits, samples.logits[i].double().numpy()))
        distillation = temperature**2 * (q * np.log(q / p)).sum()
        total += (1 - objective.alpha) * cross_entropy + objective.alpha * distillation
        if objective.gamma:
            assert objective.tap is not None
            energy = (outputs[int(objective.tap.removeprefix("features."))][0].numpy() ** 2).mean(axis=0)
            total += objective.gamma * ((attention - energy / np.sqrt((energy**2).sum())) ** 2).mean()
    return total / len(flips)


WEIGHTS = {"kd": "alpha", "ig": "overlay", "at": "gamma"}


@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_of_every_arm_is_the_formula(arm: Arm) -> None:
    config = DistillConfig(
        store="s", test_images="t", out="o", arm=arm, student="mobilenet:cut=11", alpha=0.3, temperature=3.0, gamma=40.0, overlay=0.5
    )
    objective, samples = replace(config.objective, tap="features.4"), random_samples(10)
    for part, weight in WEIGHTS.items():
        assert getattr(objective, weight) == (getattr(config, weight) if part in arm.split("+") else 0)
    model = build(TINY, 1).double().eval()
    nn.init.normal_(model.network.classifier.weight, generator=torch.Generator().manual_seed(0))
    loss, logits = loss_of(model.float(), samples, objective, seed=4, epoch=2, padding=0)
    assert logits.shape == (10, 3)
    assert loss.item() == pytest.approx(loss_by_hand(model.double(), samples, objective, 4, 2), rel=1e-4)


def test_no_two_arms_have_the_same_loss_and_none_needs_what_it_does_not_use() -> None:
    model, whole = build(TINY, 1).eval(), random_samples(10)
    nn.init.normal_(model.network.classifier.weight, generator=torch.Generator().manual_seed(0))
    values = []
    for arm in ARMS:
        objective = DistillConfig(
            store="s", test_images="t", out="o", arm=arm, student="mobilenet:cut=11", alpha=0.3, gamma=40.0, overlay=0.5
        ).objective
        objective = replace(objective, tap="features.4")
        needed = {
            name: whole.signals[name] for part, name in (("ig", "ig"), ("kd", "logits"), ("at", "attention")) if part in arm.split("+")
        }
        loss, _ = loss_of(model, Samples(whole.ids, whole.pixels, whole.labels, needed), objective, seed=4, epoch=2, padding=2)
        values.append(loss.item())
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 1e-5


def test_every_part_of_the_loss_reaches_the_weights() -> None:
    samples = random_samples(6)
    for objective in (Objective(alpha=1.0), Objective(alpha=0.5, gamma=1.0, tap="features.4"), Objective(overlay=1.0)):
        model = build(TINY, 1)
        loss_of(model, samples, objective, seed=0, epoch=1, padding=2)[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert any(p.grad is not None and p.grad.any() for p in model.network.features[0].parameters())


def test_a_smaller_scale_shows_the_network_smaller_images() -> None:
    sizes = []
    model = build(TINY, 1).eval()
    model.network.features[0].register_forward_hook(lambda module, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    for scale in (1.0, 0.75):
        loss_of(model, random_samples(4), Objective(), seed=0, epoch=1, padding=2, scale=scale)
    assert sizes == [(16, 16), (12, 12)]


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 10, 250])
def test_evaluation_is_accuracy_and_cross_entropy_by_hand(batch_size: int) -> None:
    model, samples = build(TINY, 2).train(), random_samples(37)
    nn.init.normal_(model.network.classifier.weight, generator=torch.Generator().manual_seed(0))
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


def test_the_one_cycle_schedule() -> None:
    how = recipe(learning_rate=0.4)
    points = {0.0: 0.004, 0.1: 0.2, 0.2: 0.4, 0.6: 0.2, 1.0: 0.0}
    assert [learning_rate(how, p) for p in points] == pytest.approx(list(points.values()))
    rates = [learning_rate(how, k / 1000) for k in range(1001)]
    assert all(a <= b for a, b in itertools.pairwise(rates[:201])) and all(a > b for a, b in itertools.pairwise(rates[200:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.005


def test_a_constant_rate() -> None:
    assert {learning_rate(recipe(optimizer="adam", schedule="constant", learning_rate=1e-3), k / 100) for k in range(101)} == {1e-3}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
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

EVERYTHING = Objective(alpha=0.3, gamma=1.0, overlay=0.5, tap="features.4")


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
    own = learner(first, how, EVERYTHING, optimizer=first_optimizer)
    rows = train(own, resident(samples, how, EVERYTHING, 0), random_samples(5, seed=9), [])
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
        rows = train(learner(model, how, optimizer=optimizer), resident(samples, how, Objective(), 0), random_samples(5), [])
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
    for how in (
        recipe(epochs=8, batch_size=16),
        recipe(optimizer="adam", schedule="constant", learning_rate=3e-3, epochs=8, batch_size=16),
    ):
        history = run(build(TINY, 0), samples, how, validation=samples)
        assert history[0]["train_loss"] > 0.8
        assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
        assert history[-1]["train_accuracy"] > 0.8


# Refusals


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss became .* in epoch \d, step \d.*--learning-rate"):
        run(Watcher(), plain_samples(12), recipe(learning_rate=1e38, padding=0, epochs=9), validation=plain_samples(4))


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
