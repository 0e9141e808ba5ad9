import copy
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
from captum.attr import IntegratedGradients
from PIL import Image

from igkd.attribution import attributor
from igkd.base.errors import UserError
from igkd.config.evaluate import EvaluateConfig
from igkd.evaluation.evaluate import evaluate, evaluate_images, predict
from igkd.evaluation.map_metrics import cosine
from igkd.evaluation.map_samples import likeness, look
from igkd.images import drawn_shapes
from igkd.images.class_names import distinct
from igkd.images.codec import decode, encode_png
from igkd.images.open import open_images
from igkd.images.samples import Samples, load_samples
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.training.held_out import read_unseen
from igkd.training.loop import evaluate_split
from tests.helpers.networks import lively, settled
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program
from tests.helpers.training import TINY, random_samples

IMAGES = "shapes:train=10,test=30"
SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="mobilenet:cut=11,width=0.35,stride=2")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("student")
    model = settled(build(SPEC, 3))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)  # answers of some confidence
    checkpoint.save(model, directory, {})
    return str(directory)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_samples(open_images(IMAGES), "test", np.arange(30))[0]


def near(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same up to rounding."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(near, a, b))
    return bool(a == pytest.approx(b, rel=1e-4, abs=1e-5))


def test_the_figures_are_those_of_training_and_those_by_class_make_up_the_whole(student: str, samples: Samples) -> None:
    model = checkpoint.load(student)
    row, trained = evaluate(model, samples), evaluate_split(model, samples)
    assert {k: row[k] for k in trained} == pytest.approx(trained, rel=1e-6) and 0 < row["correct"] < 30
    assert set(row) == {"accuracy", "correct", "count", "loss", "calibration_error", "per_class"}
    assert list(row["per_class"]) == list(drawn_shapes.CLASSES)
    assert np.mean(list(row["per_class"].values())) == pytest.approx(row["accuracy"])  # as many images of every class
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_batches_do_not_matter(student: str, samples: Samples) -> None:
    model = checkpoint.load(student)
    with torch.inference_mode():
        expected = model(samples.pixels.float() / 255)
    for size in (1, 7, 250):
        assert torch.allclose(predict(model, samples, size), expected, atol=1e-4)


def test_the_order_of_images_does_not_matter(student: str, teacher: str, samples: Samples) -> None:
    some = samples.select(np.arange(12))
    order = np.random.default_rng(0).permutation(12)
    one, other = (
        evaluate(checkpoint.load(student), s, teacher=checkpoint.load(teacher), maps=12, steps=4) for s in (some, some.select(order))
    )
    for name in ("cosine", "rank_correlation", "top_overlap"):
        assert one["maps"][name]["control"] != other["maps"][name].pop("control")  # another image's, which depends on who is beside whom
        one["maps"][name].pop("control")
    assert near(one, other)


def test_a_network_is_its_own_equal(teacher: str, samples: Samples) -> None:
    model = checkpoint.load(teacher)
    row = evaluate(model, samples, teacher=copy.deepcopy(model), maps=10, steps=4)
    assert row["agreement"] == 1 and row["teacher_accuracy"] == row["accuracy"] and row["maps"]["count"] == 10
    for name in ("cosine", "rank_correlation", "top_overlap"):
        figures = row["maps"][name]
        assert figures["mean"] == pytest.approx(1) and figures["standard_error"] == pytest.approx(0, abs=1e-6)
        assert figures["control"] < 0.9
    assert row["maps"]["student"] == row["maps"]["teacher"] != row["maps"]["random"]


def test_maps_are_judged_by_the_student(student: str, teacher: str, samples: Samples) -> None:
    model, other = checkpoint.load(student), checkpoint.load(teacher)
    row = evaluate(model, samples, teacher=other, maps=30, steps=4)
    maps = row["maps"]
    assert set(maps) == {"count", "baseline", "cosine", "rank_correlation", "top_overlap", "student", "teacher", "random"}
    probability = {}
    for name, pixels in (("image", samples.pixels.float() / 255), ("baseline", other.mean.expand(30, 3, 32, 32))):
        with torch.inference_mode():
            probability[name] = model(pixels).double().softmax(1)[torch.arange(30), samples.labels].mean().item()
    for name in ("student", "teacher", "random"):
        for kind, ends in (("deletion", ("image", "baseline")), ("insertion", ("baseline", "image"))):
            figures = maps[name][kind]
            assert (figures["curve"][0], figures["curve"][-1]) == pytest.approx(tuple(probability[end] for end in ends), rel=1e-4)
            assert figures["area"] == pytest.approx(np.trapezoid(figures["curve"], dx=1 / 16)) and figures["standard_error"] > 0
    assert row["agreement"] == np.mean(predict(model, samples).argmax(1).numpy() == predict(other, samples).argmax(1).numpy()) < 1
    relabelled = evaluate(model, dataclasses.replace(samples, labels=predict(other, samples).argmax(1)), teacher=other)
    assert relabelled["teacher_accuracy"] == 1 and relabelled["accuracy"] == relabelled["agreement"] == row["agreement"]
    alone, twin = evaluate(model, samples, maps=30, steps=4), copy.deepcopy(model)
    assert set(alone["maps"]) == {"count", "baseline", "student", "random"} and alone["maps"]["baseline"] == [0, 0, 0]
    assert near(alone["maps"]["student"], evaluate(model, samples, teacher=twin, maps=30, steps=4)["maps"]["student"])


@pytest.mark.parametrize("own", [(0.0, 0.0, 0.0), (0.2, 0.3, 0.6)])
def test_maps_of_two_networks_are_captums_from_the_teachers_mean_colour(own: tuple[float, ...], samples: Samples, teacher: str) -> None:
    """The student differs from its teacher in nothing but where its own normalised pixels are 0: its maps are the teacher's."""
    other = checkpoint.load(teacher)
    model = Classifier(dataclasses.replace(other.spec, mean=own, std=(1.0, 1.0, 1.0)))
    model.eval().load_state_dict(other.state_dict())
    first, norm = model.network.features[0][0], model.network.features[0][1]
    with torch.no_grad():  # the first convolution takes over what the teacher's normalisation does: exactly so but at the padded border
        first.weight.div_(other.std)
        first.padding = other.network.features[0][0].padding = (0, 0)
        norm.running_mean += (first.weight * (other.mean - model.mean)).sum(dim=(1, 2, 3))
    some = samples.select(np.arange(10))
    assert torch.allclose(predict(model, some), predict(other, some), atol=1e-3)
    row = evaluate(model, some, teacher=other, maps=10, steps=8)["maps"]
    assert row["cosine"]["mean"] > 0.999 > row["cosine"]["control"] + 0.1 and row["baseline"] == list(other.spec.mean)
    x, start = (model.normalise(p) for p in (some.pixels / 255, other.mean.expand(10, 3, 32, 32)))
    captum = IntegratedGradients(model.from_normalised).attribute(x, start, some.labels, n_steps=8, method="riemann_middle")
    expected = captum.abs().sum(dim=1).detach().numpy()
    ids = torch.from_numpy(some.ids)
    found = attributor(model, "ig", "torch", 8, other.spec.mean)(some.pixels, some.labels, ids).ig.numpy()
    assert cosine(found, expected).min() > 0.999  # rounding carries a few activations across corners of ReLU6
    own_start = attributor(model, "ig", "torch", 8)(some.pixels, some.labels, ids).ig.numpy()
    assert cosine(found, own_start).mean() < 0.99, "the baseline makes no difference"
    shown = [look(network, some, 8, "it", other.spec.mean) for network in (model, other)]
    assert likeness(*shown)["cosine"][0].min() > 0.999


def test_the_chosen_images_have_their_classes_share(student: str, samples: Samples) -> None:
    """Ten maps are one of each class, also where the images are sorted by class."""
    samples = samples.select(np.argsort(samples.labels.numpy(), kind="stable"))
    chosen = []
    model = checkpoint.load(student)
    model.normalise = lambda pixels: chosen.append(pixels) or (pixels - model.mean) / model.std
    evaluate(model, samples, maps=10, steps=1)
    seen = (chosen[-1] * 255).round().to(torch.uint8)
    rows = [int((samples.pixels == one).flatten(1).all(1).nonzero()) for one in seen]
    assert sorted(samples.labels[rows].tolist()) == list(range(10))


def test_what_cannot_be_judged_is_refused(samples: Samples) -> None:
    model = lively(build(TINY, 0))
    for maps in (-1, 1, 8):
        with pytest.raises(UserError, match=f"--maps {maps} does not fit 7"):
            evaluate(model, random_samples(7), maps=maps)
    with torch.no_grad():
        model.network.classifier.bias[1] = float("nan")
    with pytest.raises(UserError, match="not all finite"):
        evaluate(model, random_samples(7))
    with pytest.raises(UserError, match="the teacher's logits are not all finite"):
        evaluate(lively(build(TINY, 0)), random_samples(7), teacher=model)


def test_classes_of_one_name_are_told_apart_and_absent_ones_have_no_accuracy() -> None:
    assert distinct(("crane", "ox", "crane")) == ["crane (0)", "ox", "crane (2)"]
    some = random_samples(9)
    row = evaluate(lively(build(TINY, 0)), some.select(some.labels.numpy() != 1))
    assert row["per_class"]["b"] is None and row["per_class"]["a"] is not None


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
    said = " ".join(done.stdout.split())
    for words in (
        f"accuracy {figures['accuracy']:.2%} {figures['correct']} of 30 images",
        f"calibration error {figures['calibration_error']:.4f}",
        f"agreement with it {figures['agreement']:.2%}",
        f"{drawn_shapes.CLASSES[3]} {figures['per_class'][drawn_shapes.CLASSES[3]]:.2%}",
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
