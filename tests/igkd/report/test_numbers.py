"""How numbers are written: a difference that rounds to nothing has no minus sign."""

import re

from igkd.report.sweep_page import render
from igkd.report.sweep_table import markdown
from tests.helpers.sweep_rows import row, sweep


def test_no_page_and_no_table_says_minus_zero() -> None:
    values = {"student": (0.9, 0.91, 0.92), "kd": (0.90001, 0.90999, 0.91996), "kd+ig": (0.89999, 0.91, 0.92)}
    page = sweep([row(arm, seed, value) for arm, accuracies in values.items() for seed, value in enumerate(accuracies)])
    for text in (render(page), markdown(page)):
        assert re.search(r"[+]0[.]00", text) and not re.search(
            r"[-\u2212]0[.]0+(?![0-9])", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
        )
