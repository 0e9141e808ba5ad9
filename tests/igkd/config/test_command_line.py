"""Command lines: --help says all about each setting, in its part of the page, and what is given becomes the settings."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

import bench
from igkd.__main__ import COMMANDS
from igkd.base.errors import UserError
from igkd.config.command_line import documentation, parse
from igkd.config.distill import DistillConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.config.recipes import parse_distill
from igkd.config.sweeps import AblateConfig
from igkd.config.teacher import TeacherConfig

SETTINGS = [command.settings for command in COMMANDS.values() if command.settings] + ["igkd.config.distill:DistillConfig"]
BENCHES = [f"bench.{path.stem}:Config" for path in sorted(Path(bench.__path__[0]).glob("*.py")) if "class Config" in path.read_text()]


@pytest.mark.parametrize("settings", SETTINGS + BENCHES)
def test_each_setting_has_its_sentence(settings: str) -> None:
    module, _, name = settings.partition(":")
    config = getattr(importlib.import_module(module), name)
    texts = documentation(config)
    for field in dataclasses.fields(config):
        assert re.fullmatch(r"\S.*[.:]", texts[field.name]), f"{settings} {field.name}: {texts[field.name]!r}"
        assert "  " not in texts[field.name]


def given(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Make these words the command line."""
    monkeypatch.setattr("sys.argv", ["program", *words.split(" ")])


def helped(config: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What --help says, by the heading of its part."""
    given(monkeypatch, "--help")
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(config, "igkd distill")
    parts = re.split(r"(?m)^ (\w+) options +$", capsys.readouterr().out)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_help_has_parts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = helped(DistillConfig, capsys, monkeypatch)
    assert list(parts) == ["Data", "Distill", "Training", "Resource"]
    data, own, training, resource = parts
    places = {"--store": data, "--arm": own, "--alpha": own, "--epochs": training, "--seed": training, "--workers": resource}
    for flag, place in places.items():
        assert [title for title, text in parts.items() if flag + " " in text] == [place]
    assert "None" not in "".join(parts.values())
    # A paragraph is broken where the line is full, not where the source's line ends.
    lines = [line.strip("│ ") for line in parts["Distill"].splitlines()]
    assert not [line for line, following in zip(lines, lines[1:], strict=False) if len(line) < 40 and following[:1].islower()]


def test_what_is_given_becomes_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--images shapes --out x --keep-epochs 1 2 --epochs 3 --compile --min-workers 1")
    assert parse(TeacherConfig, "igkd teacher") == TeacherConfig(
        images="shapes", out="x", keep_epochs=(1, 2), epochs=3, compile=True, min_workers=1
    )
    given(monkeypatch, "--images shapes --teacher t --store s --taps a b --limit 7 --repair")
    assert parse(PrecomputeConfig, "igkd precompute") == PrecomputeConfig(
        images="shapes", teacher="t", store="s", taps=("a", "b"), limit=7, repair=True
    )
    given(monkeypatch, "--store s --out x --arms kd kd+ig --seeds 4 --until 07:00")
    assert parse(AblateConfig, "igkd ablate") == AblateConfig(store="s", out="x", arms=("kd", "kd+ig"), seeds=(4,), until="07:00")


def test_a_recipe_decides_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--store s --out x --recipe strong --alpha 0.7")
    config = parse_distill("igkd distill")
    assert (config.recipe, config.optimizer, config.temperature, config.alpha) == ("strong", "sgd", 4.0, 0.7)


def test_settings_that_cannot_be_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--images shapes --out x --epochs 0")
    with pytest.raises(UserError, match="at least 1"):
        parse(TeacherConfig, "igkd teacher")
