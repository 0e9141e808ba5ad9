"""Whole runs: what a seed fixes, what resuming needs, what is evaluated and refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from igkd.base.errors import UserError
from igkd.config.optimisation import Objective, Optimisation
from igkd.images.samples import Samples
from igkd.networks.network import Classifier, build
from igkd.training.loop import evaluate_split, train
from igkd.training.optimizer import make_optimizer
from igkd.training.state import History, load_state, save_state
from tests.helpers.training import (
    TINY,
    Watcher,
    learner,
    plain_samples,
    random_samples,
    recipe,
    resident,
    run,
    same_weights,
    without_seconds,
)

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
        run(Watcher(), plain_samples(12), recipe(learning_rate=1e30, padding=0, epochs=9), validation=plain_samples(4))


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


@pytest.mark.parametrize(
    ("epochs", "low", "done", "left"),
    [(10, 0, 3, 7), (10, 0, 10, 0), (10, 4, 1, 3 + 6 * 16 / 9), (10, 4, 4, 6 * 16 / 9), (10, 4, 5, 5), (10, 10, 2, 8)],
)
def test_time_left_counts_epochs_by_their_pixels(epochs: int, low: int, done: int, left: float) -> None:
    """In units of the epoch just done: epochs at 3/4 of the resolution have 9/16 of the pixels."""
    assert Optimisation(epochs=epochs, low_resolution_epochs=low).left_after(done) == pytest.approx(left)
