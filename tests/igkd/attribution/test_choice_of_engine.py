"""Which engine is taken, and what is said where one cannot be."""

import subprocess
import sys
from typing import Any

import pytest
from torch import Tensor, nn

from igkd.attribution import choose_engine, find_engine
from igkd.base.choices import Engine, Method
from igkd.base.errors import UserError
from tests.helpers.attributions import Layers, StandIn, layers, stand_in
from tests.helpers.paths import ROOT


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this network has no forward pass\nand says so at length")


def test_an_engine_that_fails_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"--engine openvino cannot compute maps of this network: it fails \(.*; leave --engine out") as one:
        find_engine("openvino", "ig", False, layers("waves"), (16, 16))
    with pytest.raises(UserError, match=r"no engine can.*torch fails \(this network has no forward pass\); captum fails") as two:
        find_engine("fast", "ig", False, Layers(Broken()), (16, 16))
    with pytest.raises(UserError, match=r"--engine captum cannot compute maps of this network: it fails \(this network has no") as three:
        find_engine("captum", "ig", False, Layers(Broken()), (16, 16))
    assert not any("\n" in str(caught.value) for caught in (one, two, three))


def test_an_engine_that_gives_other_maps_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igkd.attribution.derivatives._convolution_backward", lambda dtype, g, x, *rest: (x * g.mean(), None, None))
    first = choose_engine("fast", "ig", False)
    assert find_engine("fast", "ig", False, layers("plain"), (16, 16)) == ("torch", f"{first} gives other maps than plain differentiation")


def test_an_engine_asked_for_is_tried_and_taken() -> None:
    for engine in ("captum", "torch", "openvino"):
        assert find_engine(engine, "ig", False, layers("plain"), (16, 16)) == (engine, "")
    assert find_engine("fast", "ig", True, layers("plain"), (16, 16)) == ("torch", "there are GPUs")
    assert find_engine("fast", "smoothgrad-ig", False, layers("plain"), (16, 16)) == ("captum", "the one that does smoothgrad-ig")


@pytest.mark.parametrize(
    ("asked", "method", "gpu", "expected"),
    [
        ("fast", "ig", True, "torch"),
        ("openvino", "ig", True, "openvino"),
        ("captum", "ig", False, "captum"),
        ("fast", "smoothgrad-ig", False, "captum"),
    ],
)
def test_the_engine_that_fast_stands_for(asked: Any, method: Method, gpu: bool, expected: Engine) -> None:
    assert choose_engine(asked, method, gpu) == expected


@pytest.mark.parametrize(("bfloat16", "expected"), [(True, "openvino-bf16"), (False, "openvino")])
def test_fast_is_in_bfloat16_only_where_the_processor_is(bfloat16: bool, expected: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igkd.attribution.openvino.has_bfloat16", lambda: bfloat16)
    assert choose_engine("fast", "ig", gpu=False) == expected


def test_an_engine_that_cannot_do_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="only --method ig"):
        choose_engine("torch", "smoothgrad-ig", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine("fast", "ig", False) == "torch"
    with pytest.raises(UserError, match=r"pip install 'igkd\[openvino\]'"):
        choose_engine("openvino", "ig", False)


def test_a_network_that_openvino_cannot_differentiate_is_refused() -> None:
    model, pixels, _, _ = stand_in(StandIn, "softplus")
    with pytest.raises(UserError, match="softplus_backward"):
        find_engine("openvino", "ig", False, model, (pixels.shape[2], pixels.shape[3]))


@pytest.mark.parametrize(
    ("first", "used"), [("igkd.attribution.openvino", "openvino.tools.ovc.telemetry_stub"), ("openvino", "openvino_telemetry")]
)
def test_openvino_tells_nobody_of_what_it_converts(first: str, used: str) -> None:
    """By itself it does, from a forked process, for which a job that had finished waited for ever."""
    program = f"import {first}, openvino.tools.ovc.telemetry_utils as utils; print(utils.tm.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == used
