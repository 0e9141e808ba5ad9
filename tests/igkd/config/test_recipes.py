"""Recipes: presets of jobs.distill, and what they change."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from igkd.attribution.attention import attention_map
from igkd.base.errors import UserError
from igkd.config.command_line import parse
from igkd.config.distill import DistillConfig
from igkd.config.recipes import RECIPES, distill_config, made_for, parse_distill, recipe_file
from igkd.config.sweeps import AblateConfig, SearchConfig, TuneConfig
from igkd.images.views import crop_flip
from igkd.networks.network import build
from igkd.store import Store
from igkd.training.augment import draw
from igkd.training.identity import BYTES_PER_PIXEL, ingest_of
from igkd.training.loop import make_average, train
from igkd.training.optimizer import make_optimizer
from igkd.training.state import load_state, save_state
from igkd.training.student_rows import mixed_up
from igkd.training.terms.attention import attention_transfer
from tests.helpers.stores import tiny_plan
from tests.helpers.training import TINY, learner, loss_of, random_samples, recipe, resident, run, same_weights, without_seconds

PLACES = {"store": "s", "test_images": "t", "out": "o"}


def test_the_papers_recipe_is_the_papers() -> None:
    config = distill_config("paper", **PLACES)
    assert config == DistillConfig(**PLACES)
    assert (config.optimizer, config.schedule, config.learning_rate, config.weight_decay) == ("adam", "constant", 1e-3, 0)
    assert (config.epochs, config.batch_size, config.padding, config.normalise, config.averaging) == (100, 64, 4, False, 0)
    assert (config.alpha, config.temperature, config.gamma, config.overlay, config.exponents) == (0.01, 2.5, 0.8, 0.1, (1, 2))
    assert config.aligned and config.which_logits == "image" and not distill_config("paper-as-published", **PLACES).aligned


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_changes_what_the_recipe_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ["--store", "s", "--test-images", "t", "--out", "o"]
    monkeypatch.setattr("sys.argv", ["jobs.distill", "--recipe", name, *places])
    assert parse_distill("python -m jobs.distill") == distill_config(name, **PLACES)
    monkeypatch.setattr("sys.argv", ["jobs.distill", *places, f"--recipe={name}", "--epochs", "14", "--logits", "image"])
    assert parse_distill("python -m jobs.distill") == distill_config(name, **PLACES, epochs=14, logits="image")


@pytest.mark.parametrize("config", [DistillConfig, AblateConfig, TuneConfig, SearchConfig])
def test_the_help_names_every_recipe(config: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["igkd", "--help"])
    with pytest.raises(SystemExit):
        parse(config, "igkd")
    option = capsys.readouterr().out.split("  --recipe")[1].split("\n  --")[0]
    assert set(RECIPES) <= set(re.split(r"[\s,]+", option))


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"alpha": 0.4, "exponents": [1.5, 1.7], "epochs": 3}))
    config = distill_config(str(path), **PLACES)
    assert (config.alpha, config.exponents, config.epochs, config.learning_rate) == (0.4, (1.5, 1.7), 3, 1e-3)


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        '{"aplha": 1}',
        '{"store": "x"}',
        '{"epochs": "many"}',
        '{"live": 1}',
        '{"optimizer": "lamb"}',
        '{"exponents": [1]}',
        "{}",
        "no JSON",
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.json"):
        distill_config(str(path), **PLACES)


@pytest.mark.parametrize("name", ["papr", "missing.json"])
def test_an_unknown_recipe_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        distill_config(name, **PLACES)


# Controls


def sources(mixed: Any, own: Any) -> list[int]:
    """Of which image each row is."""
    return [int((own == row).flatten(1).all(dim=1).nonzero()) for row in mixed]


def test_other_maps_come_from_one_other_image_each() -> None:
    samples = random_samples(30)
    assert mixed_up(samples, distill_config("paper", **PLACES)) is samples
    other = mixed_up(samples, distill_config("paper", **PLACES, content="other"))
    assert other.pixels is samples.pixels and other.labels is samples.labels
    assert other.logits is samples.logits and other.signals["attention"] is samples.signals["attention"]
    maps = sources(other.ig, samples.ig)
    assert sorted(maps) == list(range(30)) and all(map != own for own, map in enumerate(maps))


@pytest.mark.parametrize("content", ["own", "other", "black"])
def test_the_published_maps_and_logits_come_from_independent_permutations(content: Any) -> None:
    """Compute_IGs.py and Compute_logits_and_attn.py each shuffled the images; logits and attention are of one pass."""
    samples = random_samples(600)
    drawn = []
    for seed in range(2):
        published = mixed_up(samples, distill_config("paper-as-published", **PLACES, content=content, seed=seed))
        assert published.pixels is samples.pixels and published.labels is samples.labels and published.ids is samples.ids
        maps, logits = sources(published.ig, samples.ig), sources(published.logits, samples.logits)
        assert sources(published.signals["attention"], samples.signals["attention"]) == logits
        assert sorted(maps) == sorted(logits) == list(range(600))
        drawn += [range(600), maps, logits]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:  # of two independent permutations of any size, one place in expectation is the same
            same = sum(a == b for a, b in zip(first, second, strict=True))
            assert same < 10 or (first == second == range(600))


def test_published_attention_is_not_moved_with_the_crop() -> None:
    samples, model = random_samples(10), build(TINY, 1).eval()
    how = {"seed": 4, "epoch": 2}
    tapped = replace(distill_config("paper", **PLACES, arm="at", student="mobilenet:cut=11").objective, overlay=0.0, tap="features.4")
    assert tapped.gamma > 0 and not tapped.alpha
    left = replace(tapped, uncropped_maps=distill_config("paper-as-published", **PLACES).objective.uncropped_maps)
    moved, cropped = (loss_of(model, samples, one, **how, padding=3)[0].item() for one in (tapped, left))
    assert moved != cropped
    # By hand: the same crop, and the attention as it is stored.
    draws = draw(4, 2, samples.ids, samples.shape, recipe(padding=3), left)
    logits, outputs = model(crop_flip(samples.pixels, draws.view).float() / 255, ("features.4",))
    expected = cross_entropy(logits, samples.labels) + left.gamma * attention_transfer(
        attention_map(outputs["features.4"]), samples.signals["attention"]
    )
    assert cropped == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("content", ["black", "noise", "brightness", "mask"])
def test_a_control_is_another_loss_than_the_own_map(content: Any) -> None:
    samples = random_samples(10).with_signals(mask=(torch.rand(10, 16, 16) > 0.5).to(torch.uint8))
    model = build(TINY, 1).eval()
    torch.nn.init.normal_(model.network.classifier.weight, generator=torch.Generator().manual_seed(0))
    losses = []
    for config in (distill_config("paper", **PLACES, arm="ig", overlay=1.0, content=c) for c in ("own", content)):
        losses.append(loss_of(model, samples, config.objective, seed=4, epoch=2, padding=2)[0].item())
    assert abs(losses[0] - losses[1]) > 1e-5


# Ingest


@pytest.mark.parametrize(
    ("asked", "rows", "expected"),
    [("auto", 10, "resident"), ("auto", 10**12, "stream"), ("stream", 10, "stream"), ("resident", 10**12, "resident")],
)
def test_what_does_not_fit_into_memory_is_streamed(asked: Any, rows: int, expected: str) -> None:
    store = Store("s", tiny_plan(), {"rows": rows})
    assert ingest_of(distill_config("paper", **PLACES, ingest=asked), store) == expected


def test_every_worker_has_the_rows_in_its_memory() -> None:
    height, width = tiny_plan().image_shape
    third = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (3 * BYTES_PER_PIXEL * height * width)
    store = Store("s", tiny_plan(), {"rows": third})
    assert [ingest_of(distill_config("paper", **PLACES, workers=n), store) for n in (1, 2)] == ["resident", "stream"]


# A live teacher


def test_a_live_teacher_is_asked_about_the_same_crop() -> None:
    """Without crops and flips, what it says of an image is what the store would hold."""
    samples, teacher = random_samples(8), build(TINY, 5).eval()
    torch.nn.init.normal_(teacher.network.classifier.weight, generator=torch.Generator().manual_seed(1))
    student = build(TINY, 1).eval()
    with torch.no_grad():
        stored = samples.with_signals(logits=teacher(samples.pixels.float() / 255))
    objective = distill_config("paper", **PLACES, arm="kd", alpha=1.0).objective
    live = replace(objective, logits="live")
    seed = next(s for s in range(5000) if not draw_flips(s, samples.ids).any())
    expected, _ = loss_of(student, stored, objective, seed=seed, epoch=1, padding=0)
    found, _ = loss_of(student, samples, live, seed=seed, epoch=1, padding=0, teacher=teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    moved, _ = loss_of(student, stored, objective, seed=seed, epoch=1, padding=3)
    asked, _ = loss_of(student, samples, live, seed=seed, epoch=1, padding=3, teacher=teacher)
    assert abs(moved.item() - asked.item()) > 1e-3 * asked.item()


def draw_flips(seed: int, ids: Any) -> torch.Tensor:
    from igkd.images.views import draw_view

    return draw_view(seed, 1, ids, 0).flip


# Weight averaging and precision


def test_the_average_is_the_mean_by_hand_and_is_what_is_evaluated() -> None:
    how = recipe(averaging=0.9, epochs=2, schedule="constant")
    model = torch.nn.Linear(2, 1)
    average = make_average(model, how)
    assert average is not None
    expected = None
    for step in range(40):
        torch.nn.init.constant_(model.weight, float(step))
        average.update_parameters(model)
        decay = min(0.9, step / (step + 10))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
    assert average.module.weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert make_average(model, recipe()) is None


def test_a_resumed_average_ends_in_the_same_bits(tmp_path: Path) -> None:
    how, samples = recipe(averaging=0.95, learning_rate=0.01), random_samples(24)
    undisturbed = build(TINY, 0)
    whole = make_average(undisturbed, how)
    expected = run(undisturbed, samples, how, average=whole)
    first = build(TINY, 0)
    optimizer, average = make_optimizer(first, how), make_average(first, how)
    feed = resident(samples, how, distill_config("paper", **PLACES, arm="student").objective, 0)
    objective = distill_config("paper", **PLACES, arm="student").objective
    rows = train(learner(first, how, objective, optimizer=optimizer, average=average), feed, random_samples(5, seed=9), [])
    save_state(tmp_path, first, optimizer, next(rows), average)
    second = build(TINY, 77)
    second_optimizer, second_average = make_optimizer(second, how), make_average(second, how)
    history = load_state(tmp_path, second, second_optimizer, second_average)
    resumed = run(second, samples, how, optimizer=second_optimizer, average=second_average, history=history)
    assert without_seconds(resumed) == without_seconds(expected)
    assert whole is not None and second_average is not None
    assert same_weights(second_average, whole) and not same_weights(second_average.module, second)


def test_bfloat16_is_near_float32() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        history = run(build(TINY, 0), random_samples(24), recipe(precision=precision, epochs=1))
        losses.append(history[-1]["train_loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_recipe_that_was_found_says_what_it_was_found_with(tmp_path: Path) -> None:
    """Also the weights that it starts from, the maps and the share of the images: with others it was not tried."""
    found = DistillConfig(
        **PLACES, arm="kd+ig", init="default", freeze_norms=True, explanation="gradcam", content="noise", share=0.5,
        taps=("a", "b"), alpha=0.3, exponents=(1.5, 1.7), cutout=4, precision="float32",
    )  # fmt: skip
    path = tmp_path / "best.json"
    path.write_text(json.dumps(recipe_file(found, {"store_fingerprint": "f"})))
    again = distill_config(str(path), **PLACES, arm="kd+ig")
    assert replace(again, recipe="paper") == found and made_for(str(path)) == "f"
    assert json.loads(json.dumps(recipe_file(DistillConfig(**PLACES), {}))) == {"made": {}}
