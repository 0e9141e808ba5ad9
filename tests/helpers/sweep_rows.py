"""Rows of sweeps, as runs leave them."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from igkd.evaluation.progress import progress
from igkd.report.sweep_page import SweepReport, render
from igkd.sweeps.ledger import read_rows
from tests.helpers.pages import Page
from tests.helpers.pages import result as teacher_row

SIZES = {
    "mobilenet:cut=3": (1_019_402, 68_800_000, 2.19),
    "mobilenet:cut=5": (543_498, 58_700_000, 4.12),
    "mobilenet:cut=9": (185_738, 36_400_000, 12.04),
}
SETTINGS = {"alpha": 0.01, "temperature": 2.5, "overlay": 0.1, "exponents": [1.0, 2.0], "learning_rate": 0.001, "batch_size": 64}


def row(
    arm: str = "kd",
    seed: int = 0,
    accuracy: float = 0.9,
    *,
    network: str = "mobilenet:cut=5",
    test: bool = True,
    epochs: int = 3,
    **changes: Any,
) -> dict[str, Any]:
    """A result row as a sweep writes it; of the test set the accuracy, of the validation split a tenth of a point more."""
    parts = arm.split(", ")
    contents = [part for part in parts[1:] if part in ("other", "black", "noise", "brightness")]
    undone = [part.removeprefix("without ") for part in parts[1:] if part.startswith("without ")]
    recipes = [part for part in parts[1:] if part not in contents and not part.startswith("without ")]
    parameters, multiply_adds, compression = SIZES[network]
    history = [{"epoch": e, "train_loss": 1.0, "validation_accuracy": (accuracy + 0.001) * e / epochs} for e in range(1, epochs + 1)]
    made: dict[str, Any] = {
        "name": arm,
        "arm": parts[0],
        "without": undone[0] if undone else "",
        "cell": f"{arm}-{network}-seed{seed}",
        "content": contents[0] if contents else "own",
        "recipe": recipes[0] if recipes else "paper",
        "network": network,
        "seed": seed,
        "share": 1.0,
        "state": "done",
        "config": SETTINGS | {"seed": seed, "student": network, "out": f"out/{arm}/{seed}"},
        "history": history,
        "images": {"train": 45_000, "validation": 5000, "left_out": 0},
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "compression": compression,
        "provenance": {"command": "python -m jobs.ablate", "commit": "abc1234", "versions": {"torch": "2.15.0"}, "seconds": 61.2},
    }
    if test:
        correct = round(accuracy * 10_000) if math.isfinite(accuracy) else 0
        made["test"] = {"accuracy": accuracy, "correct": correct, "count": 10_000, "loss": 0.5}
    return made | changes


def now_right(root: Path, cell: str, accuracy: float) -> None:
    """Give a finished run of a sweep's directory another validation accuracy, and all others that of chance."""
    for path in (root / "students").glob("*/result.json"):
        found = json.loads(path.read_text())
        found["history"][-1]["validation_accuracy"] = accuracy if path.parent.name == cell else 0.1
        path.write_text(json.dumps(found))


def trial(number: int, accuracy: float, *, state: str = "done", epochs: int = 3, **config: Any) -> dict[str, Any]:
    return row("kd+ig", 0, accuracy, test=False, epochs=epochs, cell=f"trial-{number}", state=state, config=SETTINGS | config)


def trials(count: int = 30) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        alpha, temperature = float(10 ** rng.uniform(-2, 0)), float(rng.uniform(1, 8))
        accuracy = 0.85 - 0.05 * math.log10(alpha / 0.1) ** 2 - 0.002 * (temperature - 4) ** 2
        pruned = {"state": "pruned", "epochs": 1} if number % 5 == 4 else {}
        made.append(trial(number, accuracy, alpha=alpha, temperature=temperature, **pruned))
    return made


def sweep(rows: list[dict[str, Any]] | None = None, **changes: Any) -> SweepReport:
    rows = [row(arm, seed, 0.9 + 0.001 * seed) for arm in ("student", "kd") for seed in (0, 1, 2)] if rows is None else rows
    plain = SweepReport(
        title="A sweep",
        kind="ablation",
        note="A note.",
        teacher=teacher_row(None, correct=940),
        rows=rows,
        failures=[],
        progress=progress(rows, len(rows)),
        gallery=[],
        latency=[],
        best=None,
        commands=["python -m jobs.ablate --out out"],
    )
    return replace(plain, **changes)


def tuning(rows: list[dict[str, Any]] | None = None, **changes: Any) -> SweepReport:
    rows = trials() if rows is None else rows
    return replace(sweep(rows), **{"kind": "tuning", "teacher": None, "best": {"alpha": 0.25, "exponents": [1.0, 2.0]}} | changes)


def words(report: SweepReport) -> str:
    return " ".join(Page(render(report)).text.split())


def checked(report: SweepReport) -> Page:
    """The page, after a look whether it stands alone, closes its tags, repeats no id and describes its pictures."""
    html = render(report)
    page = Page(html)
    assert not page.open
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in html and not re.search(r"https?://", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {f"#{name}" for name in ids}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "use"} <= named
    assert set(re.findall(r"url\((#[^)]*)\)", html)) <= named
    charts = [attributes for _, attributes in page.tags if "chart" in (attributes.get("class") or "").split()]
    assert all(chart["role"] == "img" and len(chart["aria-label"] or "") > 20 for chart in charts)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes.get("aria-hidden") == "true" for attributes in drawings)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    return page


def names(out: Path) -> list[str]:
    """The cells of a sweep's results."""
    return sorted(row["cell"] for row in read_rows(out))


def lines(out: Path) -> list[str]:
    """The cells of rows.jsonl."""
    return sorted(json.loads(line)["cell"] for line in (out / "rows.jsonl").read_text().splitlines())
