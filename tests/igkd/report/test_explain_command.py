"""Which pictures and networks igkd explain takes, and what it refuses."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igkd.base.errors import UserError
from igkd.config.explain import ExplainConfig
from igkd.config.precompute import PrecomputeConfig
from igkd.images import drawn_shapes
from igkd.images.codec import decode
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.report.explain import cards, explain, render, summary, write_page
from tests.helpers.explanations import IDS, IMAGES, SPEC, confident, config
from tests.helpers.pages import HOSTILE, Page
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded
from tests.helpers.stores import make_store


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """Pictures without classes: two of another size, one of them of a hostile name, and a hidden file that is none of them."""
    directory = tmp_path / "loose"
    directory.mkdir()
    wide = Image.fromarray(drawn_shapes.draw(0, "test", 5)[0]).resize((90, 60))
    (directory / "b.jpg").write_bytes(encoded(wide, "JPEG"))
    (directory / "<b onload=x>&amp;.png").write_bytes(encoded(wide))
    os.close(os.open(os.fsencode(directory) + b"/\xff.png", os.O_CREAT | os.O_WRONLY))
    (directory / os.fsdecode(b"\xff.png")).write_bytes(encoded(drawn_shapes.draw(0, "test", 6)[0]))
    (directory / ".hidden").write_text("no picture")
    return directory


def test_any_picture_is_scaled_and_each_networks_own_answer_explained(student: str, loose: Path) -> None:
    found = explain(config(student, images=str(loose), ids=None))
    rows = cards(found)
    assert [row["name"] for row in rows] == ["<b onload=x>&amp;.png", "b.jpg", "\N{REPLACEMENT CHARACTER}.png"]
    assert [row["scaled"] for row in rows] == [(60, 90), (60, 90), None] and {row["label"] for row in rows} == {None}
    assert np.array_equal(rows[1]["image"], decode((loose / "b.jpg").read_bytes(), (32, 32)))
    for row in rows:
        targets = {look["target"] for look in row["looks"].values()}
        assert all(look["target"] == look["answers"][0][0] for look in row["looks"].values())
        assert all(np.isfinite(own) == (len(targets) == 1) for own, _ in row["likeness"].values())
    html = render(found)
    page = Page(html)
    text = " ".join(page.text.split())
    assert "<b onload" not in html and "<b onload=x>&amp;.png" in page.text and html.encode()
    assert "scaled and cropped from 60 × 90" in text and "whose classes are not known" in text and "wrong: " not in text
    assert text.count("not compared: the maps explain") == sum(np.isnan(row["likeness"]["cosine"][0]) for row in rows)


def test_one_picture_has_no_control(student: str, teacher: str, loose: Path) -> None:
    found = explain(config(student, images=str(loose / "b.jpg"), ids=None))
    assert [row["name"] for row in cards(found)] == ["b.jpg"] and all(np.isnan(control) for _, _, control, _ in summary(found))
    assert "answer" in Page(render(found)).text
    twin = explain(config(teacher, teacher=teacher, images=str(loose / "b.jpg"), ids=None))
    assert summary(twin)[0][1] == pytest.approx(1) and "give the same answer to this picture" in " ".join(Page(render(twin)).text.split())


def test_a_network_without_a_teacher_is_drawn_alone(teacher: str) -> None:
    found = explain(config(teacher))
    page = Page(render(found))
    assert list(found.looks) == ["network"] and sum(tag == "img" for tag, _ in page.tags) == 6
    assert "names no teacher" in page.text and "likeness" not in page.text and summary(found) == []


def test_hostile_class_names_are_text(tmp_path: Path, loose: Path) -> None:
    spec = dataclasses.replace(SPEC, classes=(HOSTILE, HOSTILE, "</style><img src=x>"))
    checkpoint.save(confident(spec), tmp_path / "hostile", {})
    html = render(explain(config(str(tmp_path / "hostile"), images=str(loose), ids=None, steps=1)))
    page = Page(html)
    assert "<script" not in html and "<img src=x" not in html and not page.open
    assert all(attributes["alt"] and set(attributes) == {"src", "alt"} for tag, attributes in page.tags if tag == "img")


def test_images_of_numbered_classes_get_the_networks_names(tmp_path: Path, student: str) -> None:
    for i in range(10):
        path = tmp_path / "images" / "test" / str(i) / "x.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(drawn_shapes.draw(0, "test", i)[0]).save(path)
    rows = cards(explain(config(student, images=f"folder:{tmp_path / 'images'}", ids=(4,), steps=1)))
    assert rows[0]["label"] == drawn_shapes.CLASSES[4] and rows[0]["name"] == "test/4/x.png"


def test_images_that_cannot_be_used_are_told(student: str, loose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (loose / "b.jpg").write_bytes(b"no picture")
    found = explain(config(student, images=str(loose), ids=None, bad_images="skip", steps=1))
    assert (
        len(cards(found)) == 2
        and "2 of 3 image(s)" in found.source
        and "b.jpg" in Page(render(found)).text
        and "b.jpg" in capsys.readouterr().err
    )


def test_the_teacher_is_that_of_the_store_if_it_is_still_there(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, other, store = (shutil.copytree(teacher, tmp_path / "teacher").as_posix(), str(tmp_path / "other"), str(tmp_path / "store"))
    checkpoint.save(build(SPEC, 2), Path(other), {})
    make_store(PrecomputeConfig(images="shapes:train=20", teacher=teacher, store=store, steps=1, engine="torch"))
    checkpoint.save(build(SPEC, 3), tmp_path / "student", {"config": {"store": store, "teacher": None}})
    drawn = config(str(tmp_path / "student"), ids=(4,), steps=1)
    found = explain(drawn)
    assert found.networks["teacher"]["path"] == teacher and "student" in found.networks
    os.rename(other, tmp_path / "swap")
    shutil.rmtree(teacher)
    os.rename(tmp_path / "swap", teacher)
    assert list(explain(drawn).networks) == ["network"] and "is not the teacher that" in capsys.readouterr().err
    shutil.rmtree(store)
    assert list(explain(drawn).networks) == ["network"] and "holds no attribution store" in capsys.readouterr().err


def test_a_teacher_that_its_student_names_is_drawn_only_if_it_is_there_and_the_stores(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint's paths are as they were typed; seen from another directory, another network may lie there."""
    store = str(tmp_path / "store")
    make_store(PrecomputeConfig(images="shapes:train=20", teacher=teacher, store=store, steps=1, engine="torch"))
    checkpoint.save(build(SPEC, 2), tmp_path / "another", {})
    for named, said in (("gone", "gone holds no checkpoint"), ("another", "another is not the teacher that"), (teacher, "")):
        made = {"store": store, "teacher": str(tmp_path / named)}
        checkpoint.save(build(SPEC, 3), tmp_path / "student", {"config": made})
        assert ("teacher" in explain(config(str(tmp_path / "student"), ids=(4,), steps=1)).networks) == (said == "")
        err = capsys.readouterr().err
        assert said in err and ("name it by --teacher" in err) == (said != "")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What does not fit the student, or cannot be used at all."""
    root = tmp_path_factory.mktemp("others")
    checkpoint.save(build(dataclasses.replace(SPEC, classes=tuple("abcdefghij")), 0), root / "letters", {})
    checkpoint.save(build(dataclasses.replace(SPEC, image_shape=(64, 64)), 0), root / "large", {})
    broken = build(SPEC, 0)
    torch.nn.init.constant_(broken.network.classifier.bias, float("nan"))
    checkpoint.save(broken, root / "broken", {})
    for name in ("empty", "linked", "directory.html"):
        (root / name).mkdir()
    (root / "text.jpg").write_text("no picture")
    (root / "linked" / "a.png").symlink_to(root / "text.jpg")
    return root


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere holds no checkpoint"),
        ({"checkpoint": "letters"}, "the checkpoint .* knows other classes .* give --images of its own classes"),
        ({"checkpoint": "broken"}, "the network .*broken gives logits that are not all finite"),
        ({"teacher": "letters"}, "the teacher .* knows other classes"),
        ({"teacher": "large"}, "the teacher .* 64x64 and the checkpoint on 32x32"),
        ({"images": "photo.jpg"}, "'photo.jpg' names no images: there is no such file or directory"),
        ({"images": "folder:/nowhere"}, "no such directory"),
        ({"images": "shapes:test=0"}, "no images in split 'test'"),
        ({"images": "EMPTY"}, "empty holds no pictures; .* folder:"),
        ({"images": "LINKED"}, "a.png is a link to .*, outside of"),
        ({"images": "TEXT", "ids": None}, r"image 0 \(text.jpg\) does not decode"),
        ({"images": "TEXT", "ids": None, "bad_images": "skip"}, "none of 1 image.* can be used; the first does not decode"),
        ({"ids": (3, 40)}, "has no image 40: --ids go from 0 to 39"),
        ({"ids": (3, 3)}, "--ids must name at least one image, and none of them twice"),
        ({"ids": ()}, "--ids must name at least one image"),
        ({"steps": 0}, "--steps and --limit must be at least 1"),
        ({"limit": 0}, "--steps and --limit must be at least 1"),
        ({"out": "page.png"}, "page.png is no page: its name must end in .html"),
        ({"out": "directory.html"}, "directory.html: it is a directory"),
        ({"out": "directory.html", "checkpoint": "/nowhere"}, "directory.html: it is a directory"),  # before anything is computed
        ({"out": "text.jpg/page.html"}, "cannot write .*: .*text.jpg is no directory"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_file(student: str, others: Path, changes: dict[str, Any], words: str) -> None:
    before = sorted(others.rglob("*"))
    given = {"checkpoint": student, "images": IMAGES, "out": "page.html", "ids": IDS} | changes
    places = {"EMPTY": "empty", "LINKED": "linked", "TEXT": "text.jpg"} | {name: name for name in ("letters", "large", "orphan", "broken")}
    given = {key: str(others / places[value]) if value in places else value for key, value in given.items()}
    given["out"] = str(others / str(given["out"]))
    with pytest.raises(UserError, match=words) as caught:
        write_page(ExplainConfig(**given))
    assert "\n" not in str(caught.value) and sorted(others.rglob("*")) == before


def test_the_command_writes_the_page_and_needs_no_ray(student: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    program = "import sys, runpy; runpy.run_module('igkd.report.explain', run_name='__main__', alter_sys=True)"
    check = f"import atexit, sys; atexit.register(lambda: print('ray' in sys.modules)); {program}"
    args = ["--checkpoint", student, "--images", IMAGES, "--ids", "31", "2", "--steps", "2", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", check, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    progress = re.sub(r"^maps of .*: \d of 2\n", "", done.stderr, flags=re.MULTILINE)  # said where a map takes long
    assert (done.returncode, progress) == (0, "") and done.stdout.endswith("False\n")
    page = Page(out.read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == 6 and "--ids 31 2" in " ".join(page.text.split())
    assert "cosine" in done.stdout and str(out) in done.stdout and [p.name for p in out.parent.iterdir()] == ["page.html"]
