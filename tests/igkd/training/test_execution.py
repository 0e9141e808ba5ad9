"""How a step is computed (precision, compilation, resolution): decided once, named in the row, and resumed to the same bits."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import igkd.training.execution
from igkd.base.errors import UserError
from igkd.base.storage import read_json
from igkd.config.optimisation import Objective
from igkd.config.teacher import TeacherConfig
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.training.execution import Compiled, choose_precision, compiler
from igkd.training.run import Trainer
from igkd.training.state import read_decided, read_history
from igkd.training.task import Task
from igkd.training.teacher_data import check_teacher, teacher_line, teacher_task
from tests.helpers.training import TINY, learner, random_samples, recipe, same_weights

CPU = torch.device("cpu")


def task(**changes: Any) -> Task:
    train = random_samples(16)
    return Task(
        spec=TINY, train=train, count=16, validation=random_samples(5, seed=9), test=None, optimisation=recipe(**changes),
        objective=Objective(), seed=0,
    )  # fmt: skip


def trainer(said: list[str], **changes: Any) -> Trainer:
    return Trainer(task(**changes), lambda network: network, progress=said.append)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes this machine one with or without instructions for bfloat16."""

    def make(has_bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)

    return make


def test_auto_is_what_the_processor_is_fast_in(machine: Callable[[bool], None]) -> None:
    for has_bfloat16, expected in ((True, "bfloat16"), (False, "float32")):
        machine(has_bfloat16)
        assert choose_precision("auto", CPU) == expected
        assert choose_precision("float32", CPU) == "float32" and choose_precision("bfloat16", CPU) == "bfloat16"


def test_time_left_is_said_in_seconds_and_not_after_the_last_epoch() -> None:
    said: list[str] = []
    list(trainer(said, epochs=2).epochs())
    first, last = [line for line in said if " done in " in line]
    assert re.search(r"; about [1-9][0-9]* s left$", first) and "left" not in last


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_run_keeps_the_precision_it_was_begun_with(machine: Callable[[bool], None], tmp_path: Path, has_bfloat16: bool) -> None:
    """Also on a machine that would choose another one; and says so where it will be slow."""
    precision, emulated = ("bfloat16", "only emulates") if has_bfloat16 else ("float32", "")
    machine(has_bfloat16)
    begun, said = trainer([], precision="auto"), list[str]()
    next(begun.epochs())
    begun.save(tmp_path)
    assert read_decided(tmp_path) == {"precision": precision}
    machine(not has_bfloat16)
    moved = trainer(said, precision="auto")
    assert moved.precision != precision
    moved.load(tmp_path)
    assert moved.precision == precision
    list(moved.epochs())
    assert any("only emulates" in line for line in said) == bool(emulated)
    moved.write_outcome(tmp_path / "outcome")
    outcome = read_json(tmp_path / "outcome" / "outcome.json")
    assert outcome["precision"] == precision and outcome["compiled"] is False
    machine(has_bfloat16)
    whole = trainer([], precision="auto")
    list(whole.epochs())
    assert same_weights(whole.model, moved.model), "the same bits as on one machine"


def test_precision_changes_the_weights(machine: Callable[[bool], None]) -> None:
    """Else the test before could not fail."""
    ends = []
    for precision in ("float32", "bfloat16"):
        one = trainer([], precision=precision)
        list(one.epochs())
        ends.append(one.model)
    assert not same_weights(*ends)


def test_a_run_that_begins_at_low_resolution_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"low_resolution_epochs": 2, "averaging": 0.9, "label_smoothing": 0.1, "cutout": 4}
    whole, first, second, plain = (
        (trainer([], **settings) for _ in range(3)),
        None,
        None,
        trainer([], **settings | {"low_resolution_epochs": 0}),
    )
    one, first, second = whole
    list(one.epochs())
    epochs = first.epochs()
    next(epochs)
    first.save(tmp_path)
    second.load(tmp_path)
    list(second.epochs())
    list(plain.epochs())
    assert same_weights(one.network, second.network) and not same_weights(one.network, plain.network)


def test_label_smoothing_is_the_formula() -> None:
    """(1 - s) times the label's cross-entropy plus s times the mean over all classes."""
    from tests.helpers.training import loss_of

    samples, model = random_samples(7), build(TINY, 0)
    plain, logits = loss_of(model, samples, Objective(), seed=0, epoch=1, padding=2)
    from igkd.training.augment import draw
    from igkd.training.batches import Batch
    from igkd.training.loop import compute_loss

    how = recipe(padding=2, label_smoothing=0.2)
    batch = Batch(samples, draw(0, 1, samples.ids, samples.shape, how, Objective()), 7)
    smoothed, _ = compute_loss(learner(model, how), batch, 1)
    uniform = -logits.log_softmax(1).mean(1).mean()
    assert smoothed.item() == pytest.approx((0.8 * plain + 0.2 * uniform).item(), rel=1e-5)


# Compilation


class Broken(nn.Module):
    """Cannot be compiled: `torch.compile` is told so by what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return result


def test_without_a_compiler_a_run_goes_on_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert compiler() is None
    said: list[str] = []
    one = trainer(said, compile=True)
    list(one.epochs())
    assert [line for line in said if "torch.compile" in line] == [
        "goes on without torch.compile: there is no C++ compiler on this machine; install g++, or set CXX"
    ]
    plain = trainer([])
    list(plain.epochs())
    assert same_weights(one.model, plain.model) and one.compiled is not None and not one.compiled.active


def test_a_compile_that_fails_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")  # a program that is there and compiles nothing
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr(igkd.training.execution, "compiler", lambda: "false")
    torch._dynamo.reset()

    def refuse(graph: object, inputs: object) -> None:
        raise RuntimeError("no such instruction\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda network, **how: torch._dynamo.optimize(refuse)(network))  # the compiler behind it
    said: list[str] = []
    network = Broken()
    compiled = Compiled(network, said.append)
    pixels = torch.rand(4, 3, 8, 8)
    for _ in range(2):
        assert torch.equal(compiled(pixels), network(pixels))
    assert len(said) == 1 and said[0].startswith("goes on without torch.compile: BackendCompilerFailed") and "\n" not in said[0]
    assert not compiled.active


def test_what_is_wrong_with_the_network_itself_is_not_hidden() -> None:
    compiled = Compiled(Broken(), lambda line: None)
    with pytest.raises(RuntimeError, match="mat1 and mat2|size"):
        compiled._give_up("")
        compiled(torch.rand(4, 5, 8, 8))


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_a_compiled_run_is_the_plain_one_up_to_rounding(tmp_path: Path) -> None:
    said: list[str] = []
    one, plain = trainer(said, compile=True, low_resolution_epochs=1, epochs=2), trainer([], low_resolution_epochs=1, epochs=2)
    for run in (one, plain):
        list(run.epochs())
    assert one.compiled is not None and one.compiled.active and not any("torch.compile" in line for line in said)
    for mine, theirs in zip(one.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
    one.write_outcome(tmp_path)
    assert read_json(tmp_path / "outcome.json")["compiled"] is True


# Teachers


def test_a_teacher_may_be_any_network_and_leaves_snapshots(tmp_path: Path) -> None:
    config = TeacherConfig(
        images="shapes:train=60,test=20", out=str(tmp_path), network="lean:2:8x1,16x1", epochs=2, batch_size=16,
        learning_rate=0.02, averaging=0.9,
        label_smoothing=0.1, cutout=4, low_resolution_epochs=1, keep_epochs=(1,),
    )  # fmt: skip
    made = teacher_task(config)
    assert made.spec.name == "lean:2:8x1,16x1" and made.keep_epochs == (1,)
    assert (
        made.optimisation.averaging,
        made.optimisation.label_smoothing,
        made.optimisation.cutout,
        made.optimisation.low_resolution_epochs,
    ) == (0.9, 0.1, 4, 1)
    one = Trainer(made, lambda network: network, progress=lambda line: None)
    next(one.epochs())
    one.write_snapshot(tmp_path / "epoch-1", "teacher, epoch 1")
    kept = checkpoint.load(tmp_path / "epoch-1")
    assert same_weights(kept, one.network) and len(checkpoint.checkpoint_card(tmp_path / "epoch-1")["made"]["history"]) == 1
    one.save(tmp_path)
    assert len(read_history(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_epochs": (0,)}, "--keep-epochs 0: they must be between 1 and --epochs 2"),
        ({"keep_epochs": (1, 3)}, "--keep-epochs 1 3"),
        ({"network": "lean:teapot"}, "names no network"),
    ],
)
def test_teachers_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_teacher(TeacherConfig(images="shapes:train=40", out="o", epochs=2, **changes))


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_rates_are_numbers(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name.replace("_", " ")):
        recipe(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_label_smoothing_has_a_range(value: float) -> None:
    with pytest.raises(UserError, match="label smoothing"):
        dataclasses.replace(recipe(), label_smoothing=value)


def test_a_teachers_first_line_says_what_was_found_and_how_many_steps_that_is() -> None:
    labels = np.arange(600) % 10  # a tenth of each class is held out: 540 images are 9 batches of 60
    line = teacher_line(TeacherConfig(images="shapes", out="o", epochs=200, batch_size=60), labels, "0123456789")
    assert line.startswith("600 training pictures of 10 classes, 60 of them held out for validation; ")
    assert line.endswith("200 epochs of 9 steps are 1,800 steps")
