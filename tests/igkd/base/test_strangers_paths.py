"""Files of a stranger that would lead outside their directory, or steer a page or a terminal."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # registers Arrow types of its own, as in every job

from igkd.base.errors import run_cli
from igkd.images.open import open_images
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.store import Store, part_name
from igkd.store.__main__ import main as store_program
from igkd.sweeps.__main__ import main as sweeps_program
from igkd.sweeps.ledger import read_rows
from igkd.sweeps.publish import publish
from tests.helpers.pages import HOSTILE, Page
from tests.helpers.pictures import encoded
from tests.helpers.strangers import PIXELS, SPEC, SWEEP, refused, result, sweep


def test_a_link_out_of_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(encoded(PIXELS))
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "a.png").write_bytes(encoded(PIXELS))
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.png").write_bytes(encoded(PIXELS))
    pq.write_table(pa.table({"img": [{"bytes": encoded(PIXELS), "path": "a"}], "label": [0]}), private / "train-0.parquet")
    for place, target in (
        ("cat/c.png", "../../private/secret.png"),  # a file, a class, what is deep in a class, a split, a link to a link
        ("dog", private),
        ("cat/deep/more", private),
        ("train", private),
        ("cat/d.png", "e.png"),
    ):
        link = tmp_path / "set" / place
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        if target == "e.png":
            (tmp_path / "set" / "cat" / "e.png").symlink_to(private / "secret.png")
        refused(lambda: open_images(f"folder:{tmp_path / 'set'}"), "is a link to .*private.*, outside of .* put a copy there")
        for made in (link, tmp_path / "set" / "cat" / "e.png"):
            made.unlink(missing_ok=True)
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train-0.parquet").symlink_to(private / "train-0.parquet")
    refused(
        lambda: open_images(f"parquet:{tmp_path / 'parquet'}"), "train-0.parquet is a link to .*private.*, outside of .* put a copy there"
    )


PLANS: dict[str, dict[str, Any]] = {
    "no rows a file": {"rows_per_file": 0},
    "a quadrillion files": {"rows": 10**15, "rows_per_file": 1},
    "half a row": {"rows": 34.0},
    "pictures of terabytes": {"image_shape": [1 << 20, 1 << 20]},
    "three sides": {"image_shape": [1, 1, 1]},
    "no type": {"precision": "pickle"},
    "no layer": {"attention_layer": "../../x"},
    "classes": {"classes": "abc"},
    "not a number": {"short_side": float("nan")},
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_that_lies(kind: str, finished: str, tmp_path: Path) -> None:
    manifest = json.loads(Path(finished, "manifest.json").read_bytes())
    manifest["plan"] |= PLANS[kind]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: Store.open(str(tmp_path)), "manifest.json is damaged or not ours")


def test_a_part_is_never_anywhere_else(finished: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "store"))
    manifest = json.loads((copy / "manifest.json").read_bytes())
    shutil.move(copy / part_name(0), tmp_path / part_name(0))
    for name in (f"../{part_name(0)}", str(tmp_path / part_name(0)), f"./{part_name(0)}"):
        manifest["files"][0]["name"] = name
        (copy / "manifest.json").write_text(json.dumps(manifest))
        refused(lambda: Store.open(str(copy)), "does not list the 5 parts")


@pytest.mark.parametrize("page", ["../../stolen.html", "/tmp/stolen.html", "a/b.html", "..", "", "rows.jsonl", 7])
def test_a_report_is_written_where_it_belongs(page: Any, tmp_path: Path) -> None:
    root = sweep(tmp_path / "out", dataclasses.asdict(SWEEP) | {"page": page})
    refused(lambda: publish(root), "is not of a sweep of this version")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "status.json"]


def test_a_report_does_not_write_through_links(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    root = sweep(tmp_path / "out")
    for name in ("report.html", "table.md"):
        (root / name).symlink_to(private)
    publish(root)
    assert private.read_text() == "mine" and "0 of 4 runs finished" in (root / "report.html").read_text()


def test_a_row_cannot_say_that_it_is_elsewhere(tmp_path: Path) -> None:
    [row] = read_rows(sweep(tmp_path, mine=result(cell="../../elsewhere")))
    assert row["cell"] == "mine"


def test_a_report_escapes_what_strangers_wrote(finished: str, tmp_path: Path) -> None:
    config = {"store": finished, "teacher": None, HOSTILE: HOSTILE}
    source = {"command": HOSTILE, "commit": HOSTILE, "machine": HOSTILE, "started": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    names = {"name": HOSTILE, "arm": HOSTILE, "recipe": HOSTILE, "content": HOSTILE, "job": HOSTILE}
    failures = {HOSTILE: {"tries": 3, "error": HOSTILE}}
    rows = {f"<img src=x onerror=alert({n})>": result(**names, config=config, provenance=source, seed=n) for n in range(2)}
    root = sweep(tmp_path / "out", dataclasses.asdict(SWEEP) | {"failures": failures}, **rows)
    for name in rows:
        checkpoint.save(build(SPEC, 0), root / "students" / name, {})
    publish(root)
    page = Page((root / "report.html").read_text())
    assert page.text.count('<script>alert("x")</script>') >= 8
    assert not {"script", "img"} & {tag for tag, _ in page.tags} and not any(key.startswith("on") for _, a in page.tags for key in a)
    assert "<script" not in (root / "table.md").read_text()


def test_a_terminal_is_not_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\r"
    root = sweep(tmp_path, dataclasses.asdict(SWEEP) | {"failures": {escape: {"tries": 1, "error": escape}}})
    for program, *arguments in ((sweeps_program, "status", str(root)), (store_program, "verify", escape)):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit, match="1"):
            run_cli(program)
        said = "".join(capsys.readouterr())
        assert "owned" in said and not set("\x1b\x07\r") & set(said)
