from pathlib import Path

from igkd.sweeps.ledger import Ledger, Status
from igkd.sweeps.publish import publish


def test_a_sweep_without_a_finished_run_has_a_report_of_its_failures(tmp_path: Path) -> None:
    """What somebody finds in the morning after the first run took too long, or all of them failed."""
    status = Status(command="python -m jobs.tune", planned=[], total=50, slots=2, began=0.0, kind="tuning")
    status.failures["trial-1"] = {"tries": 3, "error": "CUDA is out of <memory>"}
    Ledger(tmp_path, status).write_status("stopped")
    assert "0 of 50 runs finished, 1 failed, 49 to go" in publish(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.index("CUDA is out of &lt;memory&gt;") < page.index("0 of 50 runs finished") < page.index("No run has reached an epoch")
    assert "0 of 50 runs finished" in (tmp_path / "table.md").read_text()
