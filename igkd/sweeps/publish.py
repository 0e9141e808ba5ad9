"""From a sweep's directory to its report: a page, OUT/table.md and the essence for a terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from igkd.base.errors import UserError
from igkd.base.run_directory import read_object
from igkd.base.storage import write_bytes
from igkd.networks import checkpoint
from igkd.networks.network import Classifier
from igkd.networks.open import open_teacher
from igkd.report.gallery import Showcase, warm_latencies
from igkd.report.html import source_name
from igkd.report.pareto_page import publish_front
from igkd.report.sweep_page import SweepReport, markdown, render, summary_table
from igkd.store import Store
from igkd.sweeps.ledger import Row, read_rows, read_status

SHOWN = 6
"""Students whose maps are drawn."""


def publish(root: Path) -> str:
    """Write the report of what is done by now, be it nothing; gives the summary for a terminal.

    It has pictures of maps and latencies where the runs name their teacher.

    Args:
        root: the sweep's directory.

    Raises:
        UserError: it is no sweep, or the store or the teacher are not where they were.
    """
    status, rows = read_status(root), read_rows(root)
    if status.kind == "search":
        return publish_front(root, status)
    page = SweepReport(
        title="Ablation" if status.kind == "ablation" else "Search",
        kind=status.kind,
        rows=rows,
        failures=[{"cell": name, **failure} for name, failure in status.failures.items()],
        planned=len(rows) + max(0, status.total - len(status.done(rows))),
        commands=[status.command],
    )
    page = with_models(root, page) if rows else page
    write_bytes(root / status.page, render(page).encode())
    write_bytes(root / "table.md", markdown(page).encode())
    return f"{summary_table(page)}\n\nreport: {(root / status.page).resolve()}"


def with_models(root: Path, page: SweepReport) -> SweepReport:
    """What store, teacher and students add to the rows."""
    config = page.rows[0].get("config", {})
    if not (isinstance(config.get("store"), str) and isinstance(teacher := config.get("teacher"), str | None)):
        raise UserError(f"{root}: the result of {page.rows[0]['cell']} does not say which store and teacher it is of; delete it")
    store = Store.open(config["store"])
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
    for row in sorted(done, key=lambda row: (row["seed"], ", " in row["arm"])):
        if row["network"] == usual and row["share"] == 1:
            chosen.setdefault(row["arm"], row)
    return {arm: checkpoint.load(root / "students" / row["cell"]) for arm, row in list(chosen.items())[:SHOWN]}
