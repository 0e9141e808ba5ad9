"""Learning rates, optimizers and one step by hand."""

import itertools

import numpy as np
import pytest
import torch

from igkd.training.optimizer import learning_rate, make_optimizer
from tests.helpers.training import (
    Watcher,
    plain_samples,
    recipe,
    run,
)


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
