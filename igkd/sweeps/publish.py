"""Writes a sweep's report: an HTML page and OUT/table.md; gives a summary for a terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from igkd.base.errors import UserError
from igkd.base.run_directory import read_object
from igkd.base.storage import write_bytes
from igkd.networks import checkpoint
from igkd.networks.checkpoint import checkpoint_card
from igkd.networks.network import Classifier
from igkd.networks.open import names_network, open_teacher
from igkd.report import pareto_page
from igkd.report.gallery import Showcase, warm_latencies
from igkd.report.html import source_name
from igkd.report.sweep_page import SweepReport, render
from igkd.report.sweep_table import markdown, summary_table
from igkd.store import Store
from igkd.sweeps.ledger import Row, Status, read_rows, read_status
from igkd.sweeps.speed_search import LATENCIES, read_latencies

SHOWN = 6
"""Number of students whose maps are drawn."""


def publish(root: Path) -> str:
    """Write the report of the results so far, even if there are none; returns the summary for a terminal.

    It has pictures of maps and latencies if the runs name their teacher.

    Args:
        root: the sweep's directory.

    Raises:
        UserError: the directory is not a sweep, or the store or the teacher is no longer there.
    """
    status, rows = read_status(root), read_rows(root)
    if status.kind == "search":
        return publish_front(root, status)
    page = SweepReport(
        title="Ablation" if status.kind == "ablation" else "Search",
        kind=status.kind,
        rows=rows,
        failures=[{"cell": name, **failure} for name, failure in status.failures.items()],
        progress=status.progress(rows),
        commands=[status.command],
    )
    page = with_models(root, page) if rows else page
    write_bytes(root / status.page, render(page).encode())
    write_bytes(root / "table.md", markdown(page).encode())
    return f"{summary_table(page)}\n\nreport: {(root / status.page).resolve()}"


def with_models(root: Path, page: SweepReport) -> SweepReport:
    """Add to a report what is computed from store, teacher and students: title, latencies, pictures."""
    config = page.rows[0].get("config", {})
    if not (isinstance(config.get("store"), str) and isinstance(teacher := config.get("teacher"), str | None)):
        raise UserError(f"{root}: the result of {page.rows[0]['cell']} does not say which store and teacher it is of; delete it")
    store = opened_store(root, config["store"])
    network, card = (None, None) if teacher is None else open_teacher(teacher)
    made = {} if card is None else card["made"]
    students = shown_students(root, page.rows, page.kind)
    networks = {row["network"]: root / "students" / row["cell"] for row in page.done}
    best = root / "best.json"
    return replace(
        page,
        title=f"{page.title} on {source_name(store.plan.images)}",
        note=f"Students learn from {store.manifest['rows']:,} images "
        "and what their teacher saw in them, less those of the validation split.",
        teacher=None
        if card is None
        else {
            "name": "teacher",
            "seed": None,
            "network": network.spec.name if network is not None else "",
            "history": made.get("history", []),
            "test": made.get("test", {}),
            "parameters": card["parameters"],
            "multiply_adds": card["multiply_adds"],
            "compression": 1.0,
            "provenance": made.get("provenance", {}),
        },
        gallery=Showcase(store, network, students, 1).gallery() if network is not None and students else [],
        latency=warm_latencies(network, map(checkpoint.load, networks.values())) if network is not None and networks else [],
        best={k: v for k, v in read_object(best).items() if k != "made"} if page.kind == "tuning" and best.exists() else None,
    )


def opened_store(root: Path, uri: str) -> Store:
    """The store of a sweep, which its rows name as its command did.

    Raises:
        UserError: that is a relative path, and there is nothing in this directory.
    """
    if "://" not in uri and not Path(uri).is_absolute() and not Path(uri).exists():
        raise UserError(
            f"{root} is of the store {uri}, which is not here: the path is that of the directory where the sweep was begun, so "
            "draw the report there"
        )
    return Store.open(uri)


def shown_students(root: Path, rows: Sequence[Row], kind: str) -> dict[str, Classifier]:
    """The first seed of some arms of the most common network, or the best trial of a search."""
    done = [row for row in rows if row["state"] == "done"]
    if not done:
        return {}
    if kind == "tuning":
        done = [max(done, key=lambda row: row["history"][-1]["validation_accuracy"])]
    networks = [row["network"] for row in done]
    usual = max(networks, key=networks.count)
    chosen: dict[str, Row] = {}
    for row in sorted(done, key=lambda row: (row["seed"], row["name"] != row["arm"])):
        if row["network"] == usual and row["share"] == 1:
            chosen.setdefault(row["name"], row)
    return {arm: checkpoint.load(root / "students" / row["cell"]) for arm, row in list(chosen.items())[:SHOWN]}


def publish_front(root: Path, status: Status) -> str:
    """Write the report of the results so far; returns the summary for a terminal.

    Args:
        root: OUT of jobs.search.

    Raises:
        UserError: a file that it needs is damaged or missing.
    """
    latencies, rows = read_latencies(root), read_rows(root)
    if latencies is None:
        raise UserError(f"{root} has no {LATENCIES}; run the command of its search again")
    config: dict[str, Any] = next((row["config"] for row in rows if "config" in row), {})
    note, teacher = "", dict[str, Any]()
    if isinstance(config.get("store"), str) and isinstance(config.get("teacher"), str):
        store = opened_store(root, config["store"])
        source = source_name(store.plan.images)
        note = f"Students learn from {store.manifest['rows']:,} images of {source}, less those of the validation split."
        teacher = {} if names_network(config["teacher"]) else checkpoint_card(config["teacher"])
    best = read_object(root / "best.json").get("student") if (root / "best.json").exists() else None
    report = pareto_page.FrontReport(
        title="Search for a fast student",
        progress=status.progress(rows),
        failures=status.failures,
        command=status.command,
        rows=rows,
        latencies=latencies,
        teacher=teacher,
        best=best if isinstance(best, str) else None,
        note=note,
    )
    write_bytes(root / status.page, pareto_page.render(report).encode())
    return f"{pareto_page.summary(report)}\n\nreport: {(root / status.page).resolve()}"
