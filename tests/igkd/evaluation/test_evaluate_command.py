"""The command, which images it takes, and what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igkd.base.errors import UserError
from igkd.config.evaluate import EvaluateConfig
from igkd.evaluation.evaluate import evaluate, evaluate_images
from igkd.images import drawn_shapes
from igkd.images.codec import decode, encode_png
from igkd.images.open import open_images
from igkd.images.samples import Samples
from igkd.networks import checkpoint
from igkd.networks.network import build
from igkd.training.held_out import read_unseen
from tests.helpers.evaluations import IMAGES, SPEC, near
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program

# The command


def command(*args: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "igkd", "evaluate", *args]
    # As many threads as here: other sums round otherwise, which the corners of ReLU6 make visible in maps.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_the_command_prints_and_writes_what_evaluate_gives(student: str, teacher: str, samples: Samples, tmp_path: Path) -> None:
    out = tmp_path / "new" / "judged.json"
    args = ["--checkpoint", student, "--images", IMAGES, "--teacher", teacher, "--maps", "4", "--steps", "3", "--out", str(out)]
    done = command(*args)
    assert done.returncode == 0, done.stderr
    progress = ["30 images", "the student's maps of 4 images", "the teacher's maps of 4 images"]
    progress += [f"deletion and insertion curves by maps: {name}" for name in ("student", "teacher", "random")]
    assert done.stderr.splitlines() == [f"evaluate: {line}" for line in progress]
    row = json.loads(out.read_text())
    figures = row["evaluation"]
    assert figures.pop("left_out") == 0
    assert near(figures, evaluate(checkpoint.load(student), samples, teacher=checkpoint.load(teacher), maps=4, steps=3))
    assert row["checkpoint_sha256"] == checkpoint.checkpoint_card(student)["sha256"] and row["config"]["images"] == IMAGES
    assert row["provenance"]["command"].startswith("igkd evaluate --checkpoint") and row["provenance"]["versions"]["torch"]
    said, counts = " ".join(done.stdout.split()), np.array(figures["confusion"])
    wrong = (counts * (1 - np.eye(len(counts)))) / counts.sum(axis=1, keepdims=True)
    label, answer = np.unravel_index(wrong.argmax(), wrong.shape)
    first = f"{drawn_shapes.CLASSES[label]} for {drawn_shapes.CLASSES[answer]} ({100 * wrong.max():.1f} %)"
    for words in (
        f"accuracy {figures['accuracy']:.2%} {figures['correct']} of 30 images",
        f"calibration error {figures['calibration_error']:.4f}",
        f"agreement with it {figures['agreement']:.2%}",
        f"{drawn_shapes.CLASSES[3]} {figures['per_class'][drawn_shapes.CLASSES[3]]:.2%}",
        f"most often taken for another {first}",
        f"cosine {figures['maps']['cosine']['mean']:.3f} +-",
        f"by the map: random {figures['maps']['random']['deletion']['area']:.3f} +-",
    ):
        assert words in said
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_command_says_what_is_wrong_in_one_sentence(student: str, tmp_path: Path) -> None:
    done = run_program("igkd", ["evaluate", "--checkpoint", str(tmp_path / "none"), "--images", IMAGES])
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "holds no checkpoint" in done.stderr
    done = run_program("igkd", ["evaluate", "--checkpoint", student, "--images", IMAGES, "--steps", "0"])
    assert done.returncode != 0 and "--steps and --limit must be at least 1" in done.stderr and "Traceback" not in done.stderr


def test_evaluation_needs_no_ray() -> None:
    subprocess.run([sys.executable, "-c", "import igkd.evaluation.evaluate, sys; assert 'ray' not in sys.modules"], cwd=ROOT, check=True)


def folder(root: Path, count: int = 20) -> str:
    """Test images of the built-in shapes as a folder: its classes are in the alphabet's order."""
    for i in range(count):
        path = root / "test" / drawn_shapes.CLASSES[drawn_shapes.label(i)] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn_shapes.draw(0, "test", i)[0]).save(path)
    return f"folder:{root}"


def test_classes_in_another_order_are_found_by_name(student: str, tmp_path: Path) -> None:
    assert list(drawn_shapes.CLASSES) != sorted(drawn_shapes.CLASSES)
    config = EvaluateConfig(checkpoint=student, images=IMAGES)
    rows = [evaluate_images(c) for c in (config, dataclasses.replace(config, images=folder(tmp_path, 30)))]
    assert near(rows[0]["evaluation"], rows[1]["evaluation"]) and rows[0]["evaluation"]["correct"] > 0


def test_a_teacher_with_its_classes_in_another_order_is_put_into_the_students(student: str, tmp_path: Path) -> None:
    model = checkpoint.load(student)
    order = torch.from_numpy(np.random.default_rng(0).permutation(10))
    with torch.no_grad():
        model.network.classifier.weight.copy_(model.network.classifier.weight[order].clone())
        model.network.classifier.bias.copy_(model.network.classifier.bias[order].clone())
    model.spec = dataclasses.replace(model.spec, classes=tuple(SPEC.classes[i] for i in order))
    checkpoint.save(model, tmp_path / "t", {})
    config = EvaluateConfig(checkpoint=student, images=IMAGES, teacher=str(tmp_path / "t"), maps=3, steps=2)
    figures = evaluate_images(config)["evaluation"]
    assert figures["agreement"] == 1 and figures["teacher_accuracy"] == figures["accuracy"]
    assert figures["maps"]["cosine"]["mean"] == pytest.approx(1)


def test_a_limit_and_images_left_out(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path)
    next(tmp_path.glob("test/*/000.png")).write_bytes(b"no picture")
    config = EvaluateConfig(checkpoint=student, images=source)
    with pytest.raises(UserError, match="000.png.*--bad-images skip"):
        evaluate_images(config)
    figures = evaluate_images(dataclasses.replace(config, bad_images="skip"))["evaluation"]
    assert (figures["count"], figures["left_out"]) == (19, 1) and "000.png" in capsys.readouterr().err
    limited = evaluate_images(dataclasses.replace(config, images=IMAGES, limit=10))["evaluation"]
    assert limited["count"] == 10 and None not in limited["per_class"].values()
    assert evaluate_images(dataclasses.replace(config, images=IMAGES, limit=99))["evaluation"]["count"] == 30


def test_how_a_folder_is_understood_is_told_once(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, 30)
    (tmp_path / "test" / ".DS_Store").write_text("of a file manager")
    config = EvaluateConfig(checkpoint=student, images=f"folder:{tmp_path / 'test'}")  # without splits
    figures = [evaluate_images(config)["evaluation"] for _ in range(2)]
    read_unseen(config.images, drawn_shapes.CLASSES, (32, 32), False, "skip")  # as jobs do, beforehand
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert figures[0]["count"] == 6 and len(notes) == 2
    assert "6 of the 30 pictures" in notes[0] and "1 .DS_Store" in notes[1]


@pytest.fixture(scope="module")
def others(student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What does not fit the student: checkpoints and images, by what is wrong with them."""
    root = tmp_path_factory.mktemp("others")
    specs = {
        "two": dataclasses.replace(SPEC, classes=("a", "b")),
        "letters": dataclasses.replace(SPEC, classes=tuple("abcdefghij")),
        "large": dataclasses.replace(SPEC, image_shape=(64, 64)),
    }
    for name, spec in specs.items():
        checkpoint.save(build(spec, 0), root / name, {})
    checkpoint.save(checkpoint.load(student), root / "damaged", {})
    weights = bytearray((root / "damaged" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (root / "damaged" / "model.safetensors").write_bytes(weights)
    return {name: str(root / name) for name in (*specs, "damaged")} | {"student": student}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "damaged"}, "does not match the sha256"),
        ({"checkpoint": "two"}, "the checkpoint .* knows 2 classes, shapes:.* has 10; give --images of its own classes"),
        ({"checkpoint": "letters"}, "the checkpoint .* knows other classes .* give --images"),
        ({"images": "nonsense"}, "'nonsense' names no images"),
        ({"images": "folder:/nowhere"}, "no such directory"),
        ({"images": "shapes:test=0"}, "no images in split 'test'"),
        ({"teacher": "two"}, "the teacher .* knows 2 classes, the checkpoint .* has 10; give one of the same classes"),
        ({"teacher": "letters"}, "the teacher .* knows other classes"),
        ({"teacher": "large"}, "the teacher .* 64x64 and the checkpoint on 32x32"),
        ({"teacher": "/nowhere"}, "/nowhere holds no checkpoint"),
        ({"maps": 31}, "--maps 31 does not fit 30"),
    ],
)
def test_bad_input_is_one_sentence(others: dict[str, str], changes: dict[str, Any], words: str) -> None:
    given = {"checkpoint": "student", "images": IMAGES} | changes
    config = EvaluateConfig(**{k: others.get(v, v) if k in ("checkpoint", "teacher") else v for k, v in given.items()})
    with pytest.raises(UserError, match=words) as caught:
        evaluate_images(config)
    assert "\n" not in str(caught.value)


def test_pictures_are_scaled_to_the_size_of_the_checkpoint(others: dict[str, str], tmp_path: Path) -> None:
    """By the same rule as for training: the answers are those to pictures that were scaled before."""
    source = open_images(IMAGES)
    for record in source.read("test", range(30)):
        path = tmp_path / "test" / source.classes[record.label] / f"{record.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(decode(record.image, (64, 64))))
    small, large = (
        evaluate_images(EvaluateConfig(checkpoint=others["large"], images=images))["evaluation"]
        for images in (IMAGES, f"folder:{tmp_path}")
    )
    assert small["count"] == 30 and small["per_class"] == large["per_class"] and small["loss"] == pytest.approx(large["loss"], rel=1e-5)


def test_a_teacher_that_scales_pictures_by_another_rule_is_said_to(
    student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint.load(student)
    model.spec = dataclasses.replace(model.spec, short_side=64)
    checkpoint.save(model, tmp_path / "t", {})
    evaluate_images(EvaluateConfig(checkpoint=student, images=IMAGES, teacher=str(tmp_path / "t")))
    assert "has pictures scaled by another rule than the checkpoint" in capsys.readouterr().err
    evaluate_images(EvaluateConfig(checkpoint=student, images=IMAGES, teacher=student))
    assert "another rule" not in capsys.readouterr().err


def test_names_neither_control_a_terminal_nor_end_in_a_traceback(student: str, tmp_path: Path) -> None:
    """As directories may be called: with an escape sequence, or in a character set of the last century."""
    source = folder(tmp_path / "pictures")
    names = sorted(path.name for path in (tmp_path / "pictures" / "test").iterdir())
    for old, new in zip(names[:2], (b"a\x1b[31mred", b"caf\xe9"), strict=True):
        (tmp_path / "pictures" / "test" / old).rename(os.fsdecode(os.fsencode(tmp_path / "pictures" / "test") + b"/" + new))
    bad = next((tmp_path / "pictures" / "test").glob("*/*.png"))
    bad.rename(bad.with_name("bad\x1b[2J.png")).write_bytes(b"no picture")
    model = checkpoint.load(student)
    model.spec = dataclasses.replace(model.spec, classes=tuple(sorted(path.name for path in (tmp_path / "pictures" / "test").iterdir())))
    checkpoint.save(model, tmp_path / "c", {})
    command = [sys.executable, "-m", "igkd", "evaluate", "--checkpoint", str(tmp_path / "c"), "--images", source]
    command += ["--bad-images", "skip", "--out", str(tmp_path / "row.json")]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"\x1b" not in done.stdout + done.stderr and b"red" in done.stdout and (tmp_path / "row.json").exists()
