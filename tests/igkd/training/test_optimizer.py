"""Learning rates, optimizers and one step by hand."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from igkd.training.optimizer import OPTIMIZERS, learning_rate, make_optimizer
from tests.helpers.paths import ROOT
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
    assert isinstance(optimizer, kind) and optimizer.param_groups[0]["weight_decay"] == 5e-4
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


@pytest.mark.parametrize(("name", "theirs"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_steps_are_those_of_torchs_own_optimizer(name: str, theirs: type) -> None:
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    ours, twin = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    twin.load_state_dict(ours.state_dict())
    one, other = (
        OPTIMIZERS[name](ours.parameters(), lr=0.1, weight_decay=0.01),
        theirs(twin.parameters(), lr=0.1, weight_decay=0.01, **more),
    )
    for step in range(6):
        if step == 3:  # each goes on from the other's state
            states = one.state_dict(), other.state_dict()
            one.load_state_dict(states[1])
            other.load_state_dict(states[0])
        for network, optimizer in ((ours, one), (twin, other)):
            optimizer.zero_grad()
            network(torch.linspace(-1, 1, 20).view(4, 5) * (step + 1)).square().sum().backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), twin.parameters(), strict=True))


TRAINING = """
import pathlib, sys, tempfile, torch
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build, multiply_adds
from tests.helpers.training import random_samples, recipe, run
network = build(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="lean:2:8x1,16x1"), 0)
run(network, random_samples(16), recipe(epochs=1, averaging=0.9, optimizer=OPTIMIZER))
directory = pathlib.Path(tempfile.mkdtemp())
checkpoint.save(network, directory, {})
assert multiply_adds(checkpoint.load(directory)) > 0
"""
PLAIN = "import sys, torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)"
COUNTER = """
import sys, torch
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False):
    torch.zeros(1) + 1
"""


@pytest.mark.parametrize(
    ("code", "imports"), [*((f"OPTIMIZER = '{name}'\n{TRAINING}", False) for name in OPTIMIZERS), (PLAIN, True), (COUNTER, True)]
)
def test_torchs_compiler_is_not_imported_as_torch_itself_would(code: str, imports: bool) -> None:
    """When one of the last two fails, torch does so no more, and `without_compiler`, or the lines in `multiply_adds`, can go."""
    code += "\nprint('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(imports)
