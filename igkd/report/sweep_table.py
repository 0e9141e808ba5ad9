"""A sweep as a Markdown table for a paper, and as a table for a terminal."""

import math

from igkd.evaluation.comparisons import Family, accuracy
from igkd.evaluation.significance import Comparison
from igkd.report import charts, html
from igkd.report.sweep_page import MEANING, SHOWN, SweepReport, cell_of, differences_of, values_of, view_of


def markdown(report: SweepReport) -> str:
    """The arms of an ablation, or the best trials of a tuning, as a Markdown table, followed by a sentence for each comparison."""
    view = view_of(report)
    if report.kind == "tuning":
        head = ["trial", "validation, %", *view.tuned]
        body = [[cell_of(row), html.percent(accuracy(row, "validation"), 2), *values_of(row, view.tuned)] for row in view.trials[:SHOWN]]
    else:
        head = ["arm", "network", "compression", MEANING[report.measure], "95 % interval", "seeds", "− student (p)", "− kd (p)"]
        differences = differences_of(view)
        body = []
        for g in view.groups:
            mean, low, high = (html.percent(share, g.digits) for share in g.interval)
            told = [_difference(differences[g.label].get(base)) for base in ("student", "kd")]
            body.append([g.arm, g.network, f"{g.compression:.2f}×", mean, f"{low} – {high}", str(len(g.by_seed)), *told])
    lines = [head, ["---"] * len(head), *body]
    table = ["| " + " | ".join(_escaped(entry) for entry in line) + " |" for line in lines]
    said = [f"- {_escaped(sentence)}." for family in view.families for sentence in _sentences(family)]
    notes = ["Accuracies are those on the validation split."] if report.measure == "validation" else []
    notes += [f"{_escaped(view.chance)}."] if view.chance else []
    if any(differences.values() for differences in differences_of(view).values()):
        notes.append("Differences in points over paired seeds; p of the paired t-test after Holm’s correction.")
    return "\n".join([*table, "", report.progress + ".", *notes, *([""] if said else []), *said]) + "\n"


def summary_table(report: SweepReport) -> str:
    """The main figures as text of at most 80 columns."""
    view = view_of(report)
    rows: list[tuple[str, ...]]
    if report.kind == "tuning":
        rows = [("trial", "validation", "epochs", "settings")]
        for row in view.trials[:SHOWN]:
            told = " ".join(f"{name}={value}" for name, value in zip(view.tuned, values_of(row, view.tuned), strict=True))
            epochs = str(len(row["history"]))
            rows.append((_short(cell_of(row), 20), f"{html.percent(accuracy(row, 'validation'))} %", epochs, _short(told, 36)))
    else:
        rows = [("arm", "network", "smaller", report.measure, "95 % interval", "seeds")]
        for g in view.groups:
            mean, low, high = (html.percent(share, g.digits) for share in g.interval)
            seeds = str(len(g.by_seed))
            rows.append(
                (charts.squeezed(g.arm, 20), charts.squeezed(g.network, 20), f"{g.compression:.2f}x", f"{mean} %", f"{low}-{high}", seeds)
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = {0, 3} if report.kind == "tuning" else {0, 1}
    aligned = (
        "  ".join(cell.ljust(width) if i in text else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join([report.progress, "", *(line.rstrip() for line in aligned), *(["", view.chance] if view.chance else [])])


def _sentences(family: Family) -> list[str]:
    return [comparison.sentence for comparison in family.comparisons]


def _difference(found: Comparison | None) -> str:
    if found is None or not math.isfinite(found.difference):
        return "–"
    return f"{100 * found.difference:+z.2f}" + (f" ({_p(found.p_holm)})" if math.isfinite(found.p_holm) else "")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _escaped(text: str) -> str:
    """The text with everything escaped that is markup in Markdown or HTML, or would end a table's cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + letter if letter in "\\|`*_[]" else letter for letter in text)
