"""Pictures in folders."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from igkd.base.errors import UserError
from igkd.images.open import found_line, loose_pictures, open_images, tell
from tests.helpers.pictures import encoded, number_of, picture

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def picture_files(root: Path, *names: str) -> str:
    """Pictures that tell their place in the list; gives the source's name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(number)))
    return f"folder:{root}"


def test_folder(tmp_path: Path) -> None:
    spec = picture_files(
        tmp_path, *(f"train/{name}" for name in ("dog/b.png", "cat/z.jpg", "cat/deep/a.png", "ant/1.webp")), "test/cat/only"
    )
    source = pickle.loads(pickle.dumps(open_images(spec)))
    assert source.classes == ("ant", "cat", "dog") and source.labels("train").tolist() == [0, 1, 1, 2] and source.notes == ()
    assert [(r.image_id, r.label, number_of(r.image)) for r in source.read("train", [3, 0, 1])] == [(3, 2, 0), (0, 0, 3), (1, 1, 2)]
    assert source.labels("test").tolist() == [1] and [number_of(r.image) for r in source.read("test", [0])] == [4]
    (tmp_path / "train" / "ant" / "2.png").write_bytes(b"more")
    assert open_images(spec).fingerprint("train") != source.fingerprint("train")


@pytest.mark.parametrize(
    "names", ["Train Test", "TRAIN TEST", "training testing", "training_set test_set", "train val", "Training Validation"]
)
def test_usual_spellings_of_splits(tmp_path: Path, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = names.split()
    spec = picture_files(tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/dog/2.png")
    source = open_images(spec)
    assert source.classes == ("cat", "dog") and source.labels("train").tolist() == [0, 1] and source.labels("test").tolist() == [1]
    assert [number_of(r.image) for r in source.read("test", [0])] == [2]
    tell(source)
    assert capsys.readouterr().err == f"note: {spec}: the train split is {train}, the test split is {test}\n"


def test_validation_beside_train_and_test_is_not_used_and_that_is_told(tmp_path: Path) -> None:
    source = open_images(picture_files(tmp_path, "train/cat/0.png", "test/cat/1.png", "valid/cat/2.png", "unlabeled/3.png"))
    assert [len(source.labels("train")), len(source.labels("test"))] == [1, 1]
    assert source.notes == (f"{source}: the train split is train, the test split is test; not used: unlabeled, valid",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("Train/cat/0.png train/cat/1.png", "holds Train, train, each of which may be the train split"),
        ("train/cat/0.png training/cat/1.png test/cat/2.png", "holds train, training, each of which"),
        ("train/cat/0.png val/cat/1.png valid/cat/2.png", "holds val, valid, each of which may be the validation split"),
        ("seg_train/cat/0.png seg_test/cat/1.png seg_pred/2.png", "holds seg_pred, seg_test, seg_train: these look like splits"),
        ("train1/cat/0.png train2/cat/1.png", "holds train1, train2: these look like splits"),
        ("myTrain/cat/0.png", "holds myTrain: these look like splits"),
        ("Train/0.png Test/1.png", "holds Test, Train: these look like splits.*with a directory for each class"),
        ("train/0.png test/1.png extra/2.png", "these look like splits"),
        ("test/0.png", "holds test: these look like splits"),
        ("train/cat/0.png test1/cat/1.png", "holds train, which may be splits, beside test1"),
        ("train/cat/0.png holdings/cat/1.png", "holds train, which may be splits, beside holdings"),
        ("train/old/0.png bus/1.png car/2.png", "holds train, which may be splits, beside bus, car"),
        ("cat/train/0.png cat/test/1.png dog/train/2.png", "cat holds test, train: if these are splits"),
        ("data/train/cat/0.png data/test/cat/1.png", r"data holds test, train: if these are splits, name that directory \(folder:.*data\)"),
        ("photos/cat/0.png photos/dog/1.png", "photos would be the only class"),
        ("training_set/training_set/cat/0.png test_set/test_set/cat/1.png", "would be the only class"),
        ("train/images/0.png train/labels/0.png test/images/1.png", "would be the only class"),
        ("train/Cat/0.png test/cat/1.png", "class 'Cat' of the train split and class 'cat' of the test split"),
        ("train/polar bear/0.png test/polar_bear/1.png", "class 'polar bear' of the train split and class 'polar_bear' of the test"),
    ],
)
def test_a_folder_that_may_be_understood_in_two_ways_is_a_question(tmp_path: Path, names: str, words: str) -> None:
    spec = picture_files(tmp_path, *(name.strip() for name in re.split(r"(?<=png) ", names)))
    with pytest.raises(UserError, match=words) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("names", ["train bus car", "valid invalid", "bullet_train test_tube bus", "test control", "A a"])
def test_classes_with_names_like_those_of_splits(tmp_path: Path, names: str) -> None:
    spec = picture_files(tmp_path, *(f"{name}/{i}.png" for name in names.split() for i in range(2)))
    assert open_images(spec).classes == tuple(sorted(names.split()))
    classes = tuple(sorted(name for name in names.split()))
    assert open_images(picture_files(tmp_path / "below", *(f"train/{name}/0.png" for name in classes))).classes == classes


def test_pictures_without_splits_are_split_by_a_rule_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(20)]
    spec = picture_files(tmp_path / "a", *names)
    source = open_images(spec)
    found = {
        split: {r.name: number_of(r.image) for r in source.read(split, range(len(source.labels(split))))} for split in ("train", "test")
    }
    assert {**found["train"], **found["test"]} == {name: i for i, name in enumerate(names)} and not found["train"].keys() & found[
        "test"
    ].keys()
    assert np.bincount(source.labels("test")).tolist() == [4, 4] and np.bincount(source.labels("train")).tolist() == [16, 16]
    for _ in range(2):
        tell(open_images(spec))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "8 of the 40 pictures" in said and "test split" in said and str(tmp_path) in said

    def tested(root: str, *more: str) -> set[str]:
        source = open_images(picture_files(tmp_path / root, *names, *more))
        return {r.name for r in source.read("test", range(len(source.labels("test"))))}

    assert tested("elsewhere") == found["test"].keys()  # of their names alone
    grown = tested("grown", *(f"cat/new{i}.png" for i in range(5)))
    assert len(grown) == 9 and len(grown & found["test"].keys()) >= 6  # whoever stays has the same place in the draw
    assert len(open_images(picture_files(tmp_path / "one", "cat/0.png")).labels("train")) == 1


def test_what_tools_leave_behind_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/cat/1", "train/dog/2.JPEG", "train/dog/IMG.003", "test/dog/4.jpg")
    clean = open_images(spec)
    assert clean.notes == () and len(clean.labels("train")) == 4
    directories = [".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".git", "System Volume Information"]
    files = [".DS_Store", "._0.png", ".hidden.jpg", "Thumbs.db", "desktop.ini", "labels.txt", "meta.json", "0.png~", "0.png.part", "README"]
    for place in ("", "train", "train/cat", "train/cat/deep", "test/dog"):
        picture_files(tmp_path / place, *(f"{name}/copy.png" for name in directories), *files)
    source = open_images(spec)
    assert source.classes == ("cat", "dog")
    assert [r.name for r in source.read("train", range(len(source.labels("train"))))] == [r.name for r in clean.read("train", range(4))]
    assert source.fingerprint("train") == clean.fingerprint("train") and source.fingerprint("test") == clean.fingerprint("test")
    tell(source)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{5 * 17} files or directories" in said and "5 .DS_Store" in said
    (tmp_path / "stray.png").write_bytes(encoded(PIXELS))
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    assert any(f"{5 * 17 + 2} files" in note for note in open_images(spec).notes)


def test_what_is_left_out_beside_loose_pictures_is_counted(tmp_path: Path) -> None:
    picture_files(tmp_path, "b.png", "a.jpg", ".DS_Store", "notes.txt", "more/c.png")
    source = loose_pictures(tmp_path)
    assert [r.name for r in source.read("test", [0, 1])] == ["a.jpg", "b.png"]
    assert len(source.notes) == 1 and "3 files or directories" in source.notes[0] and "more/" in source.notes[0]


def test_a_class_whose_files_are_no_pictures_is_a_question(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/annotations/0.xml")
    with pytest.raises(UserError, match="train/annotations holds files but no pictures"):
        open_images(spec)


def test_photographs_in_a_format_that_is_not_read_are_not_left_out(tmp_path: Path) -> None:
    source = open_images(picture_files(tmp_path, "train/cat/0.png", "train/cat/1.HEIC"))
    assert source.notes == () and len(source.labels("train")) == 2


def test_links_inside_a_folder_are_followed(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, ".pool/0.png", ".pool/1.png", ".pool/dogs/2.png", "train/cat/3.png", "test/cat/4.png")
    (tmp_path / "train" / "cat" / "z.png").symlink_to("../../.pool/0.png")
    (tmp_path / "train" / "dog").symlink_to(tmp_path / ".pool" / "dogs")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for name in (spec, f"{spec}-link"):
        source = open_images(name)
        assert [(r.label, number_of(r.image)) for r in source.read("train", range(3))] == [(0, 3), (0, 0), (1, 2)]


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("train/cat/z.png", "nowhere.png", "z.png is a link to nowhere.png, where nothing is"),
        ("train/cow", "../nowhere", "cow is a link to ../nowhere, where nothing is"),
        ("train/cat/z.png", "z.png", "z.png is a link to z.png, where nothing is"),
        ("train/cat/up", "..", "are one directory"),
        ("train/cat/here", ".", "are one directory"),
        ("train/cow", "cat", "are one directory"),
        ("val", "test", "are one directory"),
        ("train/cat/z.png", "0.png", "train/cat/z.png and train/cat/0.png are one file"),
        ("train/dog/z.png", "../cat/0.png", "train/dog/z.png and train/cat/0.png are one file"),
        ("test/cat/z.png", "../../train/cat/0.png", "test/cat/z.png and train/cat/0.png are one file"),
    ],
)
def test_links_to_nothing_and_to_what_is_there_already_are_refused(tmp_path: Path, link: str, target: str, words: str) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "train/dog/1.png", "test/cat/2.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=words) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value)


def test_a_hard_link_is_the_same_picture_twice(tmp_path: Path) -> None:
    spec = picture_files(tmp_path, "train/cat/0.png", "test/cat/1.png")
    (tmp_path / "test" / "cat" / "2.png").hardlink_to(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match="test/cat/2.png and train/cat/0.png are one file"):
        open_images(spec)


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        open_images(f"folder:{tmp_path}/missing")
    with pytest.raises(UserError, match="no class directories.*CLASS"):
        open_images(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    source = open_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="no images in split 'train'"):
        source.checked_labels("train")
    with pytest.raises(UserError, match="no 'test' directory, only train"):
        source.checked_labels("test")
    (tmp_path / "train" / "cat" / "a.png").write_bytes(b"gone soon")
    source = open_images(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat" / "a.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*cat/a.png: No such file"):
        list(source.read("train", [0]))


def test_classes_without_pictures_are_named_and_names_that_look_the_same_refused(tmp_path: Path) -> None:
    """They differ in how an accent is written, as by unpacking on a Mac."""
    spec = picture_files(tmp_path, "train/caf\u00e9/0.png", "train/b/0.png", "test/only/0.png", "test/b/0.png")
    assert "2 train pictures of 3 classes (b, caf\u00e9, only), none of them of only, in " in found_line(open_images(spec))
    picture_files(tmp_path, "train/cafe\u0301/0.png")
    with pytest.raises(UserError, match="look the same and would be two classes; merge them"):
        open_images(spec)
