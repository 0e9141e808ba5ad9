"""The loss of every arm by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from igkd.base.choices import ARMS, Arm
from igkd.config.distill import DistillConfig
from igkd.config.optimisation import Objective
from igkd.images.samples import Samples
from igkd.images.views import draw_view
from igkd.networks.network import Classifier, build
from igkd.training.augment import draw_overlay
from tests.helpers.training import (
    TINY,
    loss_of,
    random_samples,
)


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
