"""Estimates of a sweep's time: measured steps times images, by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.sweeps.estimate import Speed, kind_of, measure, seconds_of
from tests.helpers.stores import make_store


def test_seconds_by_hand() -> None:
    """Of 10 epochs 4 are of low resolution; each validates 20 images; the test set of 7 is read once."""
    config = DistillConfig(store="s", out="o", epochs=10, low_resolution_epochs=4, share=0.5)
    speed = Speed(train=0.1, low=0.06, judge=0.01)
    assert seconds_of(config, speed, 100, 20, 7) == pytest.approx(50 * (6 * 0.1 + 4 * 0.06) + 10 * 20 * 0.01 + 7 * 0.01)


def test_low_resolution_is_measured_by_itself(store_config: PrecomputeConfig, tmp_path: Path) -> None:
    """Also if a run has more such epochs than the measurement."""
    make_store(here := dataclasses.replace(store_config, store=str(tmp_path / "store")))
    config = DistillConfig(store=here.store, out="o", arm="student", student="lean:1:16x1", batch_size=4, epochs=9, low_resolution_epochs=5)
    plain = dataclasses.replace(config, low_resolution_epochs=0)
    speed, whole = (measure(one, None, torch.device("cpu")) for one in (config, plain))
    assert 0 < speed.low != speed.train > 0 and whole.low == whole.train
    assert kind_of(config) != kind_of(plain) == kind_of(dataclasses.replace(plain, epochs=20))


def test_arms_whose_steps_take_longer_are_measured_by_themselves() -> None:
    usual = DistillConfig(store="s", out="o", arm="kd")
    others = [dataclasses.replace(usual, arm="kd+map", map_every=every) for every in (1, 4)]
    others += [dataclasses.replace(usual, arm=arm) for arm in ("kd+at", "feat")]
    assert len({kind_of(one) for one in [usual, *others]}) == 5
    assert kind_of(usual) == kind_of(dataclasses.replace(usual, map_every=1)) == kind_of(dataclasses.replace(usual, seed=3))
