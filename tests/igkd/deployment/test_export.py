import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from igkd.base.choices import SUFFIXES
from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.command_line import parse
from igkd.config.export import ExportConfig
from igkd.deployment import formats
from igkd.deployment.export import CALIBRATION, Check, as_decoded, compare, export, refuse, training_images
from igkd.evaluation.evaluate import predict
from igkd.images import drawn_shapes
from igkd.images.open import open_images
from igkd.images.samples import Samples, load_samples
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.store import Store
from tests.helpers.networks import settled
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program

IMAGES = "shapes:train=300,test=0"  # no test set that could be read
SPEC = NetworkSpec(
    classes=drawn_shapes.CLASSES,
    image_shape=(32, 32),
    name="mobilenet:cut=15,width=0.35,stride=2",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
)


def confident(spec: NetworkSpec) -> Classifier:
    model = settled(build(spec, 3))
    with torch.no_grad():
        model.network.classifier.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("student")
    checkpoint.save(confident(SPEC), directory, {"config": {"images": IMAGES}})
    return str(directory)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of three convolutions: exporting takes seconds, and longer with every layer."""
    directory = tmp_path_factory.mktemp("smallest")
    spec = dataclasses.replace(SPEC, name="mobilenet:cut=17,width=0.35,stride=2")
    checkpoint.save(confident(spec), directory, {"config": {"images": IMAGES}})
    return str(directory)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_samples(open_images("shapes:test=70"), "test", np.arange(70))[0]


@pytest.fixture(scope="module")
def exported(student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each format; of int8 whatever its accuracy is."""
    directory = tmp_path_factory.mktemp("exported")
    files = {name: directory / f"{name}{suffix}" for name, suffix in SUFFIXES.items()}
    for name, path in files.items():
        export(ExportConfig(checkpoint=student, format=name, out=str(path), max_drop=1.0))
    return files


def expected(student: str, samples: Samples) -> np.ndarray:
    """The checkpoint's own logits, by plain torch."""
    with torch.inference_mode():
        return checkpoint.load(student)(samples.pixels.float() / 255).numpy()


def test_onnx_gives_the_checkpoints_logits_at_any_batch_size(student: str, exported: dict[str, Path], samples: Samples) -> None:
    session = onnxruntime.InferenceSession(str(exported["onnx"]), providers=["CPUExecutionProvider"])
    pixels, wanted = as_decoded(samples), expected(student, samples)
    assert np.ptp(wanted, axis=0).min() > 1  # images matter
    for size in (1, 2, 7, 64, 70):
        (logits,) = session.run(None, {"pixels": pixels[:size]})
        assert logits.dtype == np.float32 and logits.shape == (size, 10)
        np.testing.assert_allclose(logits, wanted[:size], atol=1e-5 * np.abs(wanted).max())


DEVICE = """
import json, sys
sys.modules["torch"] = None  # importing it raises
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
(logits,) = session.run(None, {"pixels": np.asarray(Image.open(sys.argv[2]))[None]})
try:
    import torch
except ImportError:
    print(json.dumps([logits[0].tolist(), json.loads(told["classes"])[logits[0].argmax()]]))
"""


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_a_device_without_torch_names_the_class_of_a_png(
    student: str, exported: dict[str, Path], samples: Samples, tmp_path: Path, name: str
) -> None:
    Image.fromarray(as_decoded(samples)[5]).save(tmp_path / "5.png")
    program = [sys.executable, "-I", "-c", DEVICE, str(exported[name]), str(tmp_path / "5.png")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    logits, answer = json.loads(done.stdout)
    wanted = expected(student, samples)[5]
    if name == "onnx":
        np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
    assert answer == drawn_shapes.CLASSES[int(np.argmax(logits))]


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_onnx_is_standard_and_says_what_it_is(student: str, exported: dict[str, Path], name: str) -> None:
    network = onnx.load(exported[name])
    onnx.checker.check_model(network, full_check=True)
    assert [(one.domain, one.version) for one in network.opset_import] == [("", formats.OPSET)]
    assert not network.functions and {node.domain for node in network.graph.node} == {""}
    (given,), (got,) = network.graph.input, network.graph.output
    sides = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
    assert (given.name, given.type.tensor_type.elem_type, sides) == ("pixels", onnx.TensorProto.UINT8, ["batch", 32, 32, 3])
    sides = [side.dim_param or side.dim_value for side in got.type.tensor_type.shape.dim]
    assert (got.name, got.type.tensor_type.elem_type, sides) == ("logits", onnx.TensorProto.FLOAT, ["batch", 10])
    told = {entry.key: entry.value for entry in network.metadata_props}
    assert tuple(json.loads(told["classes"])) == drawn_shapes.CLASSES
    normalisation = json.loads(told["normalisation"])
    assert (normalisation["mean"], normalisation["std"], normalisation["in_graph"]) == (list(SPEC.mean), list(SPEC.std), True)
    assert "uint8 (batch, 32, 32, 3)" in told["input"] and told["format"] == name
    assert told["checkpoint_sha256"] == checkpoint.checkpoint_card(student)["sha256"]
    checked = json.loads(told["checked"])
    assert checked["images"] == 30 and 0 < checked["checkpoint_accuracy"] < 1
    assert ("calibrated" in told) == (name == "onnx-int8")
    data = exported[name].read_bytes()  # nothing of this machine goes to devices
    assert str(ROOT).encode() not in data and student.encode() not in data and b"site-packages" not in data


def test_int8_is_int8_and_calibrated_on_training_images(student: str, exported: dict[str, Path], samples: Samples) -> None:
    network = onnx.load(exported["onnx-int8"])
    weights = {tensor.name: tensor for tensor in network.graph.initializer}
    makers = {output: node for node in network.graph.node for output in node.output}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    for node in convolutions:
        maker = makers[node.input[1]]
        assert maker.op_type == "DequantizeLinear" and weights[maker.input[0]].data_type == onnx.TensorProto.INT8
        assert weights[maker.input[1]].dims == [weights[maker.input[0]].dims[0]]  # a scale for each channel
        assert makers[node.input[0]].op_type == "DequantizeLinear"
    told = {entry.key: entry.value for entry in network.metadata_props}
    assert json.loads(told["calibrated"]) == {"split": "train", "images": min(CALIBRATION, 270)}
    logits, wanted = formats.run_onnx(network, as_decoded(samples)), expected(student, samples)
    assert (logits.argmax(1) == wanted.argmax(1)).mean() > 0.8
    assert 0 < np.abs(logits - wanted).max() < 0.3 * np.abs(wanted).max()


def test_torch_export_reloads_as_the_same_network(student: str, exported: dict[str, Path], samples: Samples) -> None:
    extra = {formats.CARD: ""}
    program = torch.export.load(exported["torch-export"], extra_files=extra).module()
    wanted = torch.from_numpy(expected(student, samples))
    for size in (1, 7, 64):
        logits = program(torch.from_numpy(as_decoded(samples)[:size]))
        torch.testing.assert_close(logits, wanted[:size], atol=1e-4, rtol=1e-5)
    told = json.loads(extra[formats.CARD])
    assert tuple(json.loads(told["classes"])) == drawn_shapes.CLASSES and json.loads(told["checked"])["agreement"] == 1
    assert str(ROOT).encode() not in exported["torch-export"].read_bytes()


# What must not be written


def test_an_accuracy_that_falls_too_far_is_refused_and_nothing_is_written(smallest: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "int8.onnx"
    where = r"accuracy is .*% where the checkpoint's is .*%, on 10 validation images, of which each is 10.00%"
    with pytest.raises(UserError, match=f"{where}: it falls by more than --max-drop -1.5; nothing was written: allow it by --max-drop"):
        export(ExportConfig(checkpoint=smallest, format="onnx-int8", out=str(out), max_drop=-1.5, limit=10))
    assert not out.parent.exists()


def test_calibration_on_black_images_is_found_out(smallest: str, tmp_path: Path) -> None:
    """Training images of a camera with its cap on: int8 knows no other range than theirs, and validation images show it."""
    some = load_samples(open_images("shapes:test=200"), "test", np.arange(200))[0]
    answers = predict(checkpoint.load(smallest), some).argmax(1).numpy()
    for i, label in enumerate(answers):  # as the network sees them: all its answers are right
        (path := tmp_path / "images" / "train" / drawn_shapes.CLASSES[label] / f"{i:03d}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(as_decoded(some)[i]).save(path)
    for name in drawn_shapes.CLASSES:
        (tmp_path / "images" / "train" / name).mkdir(exist_ok=True)
    source = open_images(f"folder:{tmp_path / 'images'}")
    rest = np.flatnonzero(~validation_mask(source.labels("train")))
    for record in source.read("train", rest.tolist()):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / record.name)
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"an earlier file")
    with pytest.raises(
        UserError, match=r"where the checkpoint's is 100.00%, on 20 validation images.* --max-drop 0.01; nothing was written: take"
    ):
        export(ExportConfig(checkpoint=smallest, format="onnx-int8", out=str(out), images=str(source)))
    assert out.read_bytes() == b"an earlier file" and {p.name for p in tmp_path.iterdir()} == {"images", "int8.onnx"}


def test_another_networks_file_is_refused(student: str, samples: Samples) -> None:
    model, wanted = checkpoint.load(student), expected(student, samples)
    labels = samples.labels.numpy()
    with torch.no_grad():
        model.network.classifier.bias += 0.1
    shifted = formats.run_torch_export(formats.archive(formats.to_torch_export(model), {}), as_decoded(samples))
    check = compare(shifted, wanted, labels)
    assert check.largest_difference == pytest.approx(0.1, abs=1e-3) and check.drop == 0
    with pytest.raises(UserError, match="onnx file's logits differ from the checkpoint's by up to 0.1, rounding explains at most"):
        refuse(check, "onnx", 1.0)
    refuse(check, "onnx-int8", 0.0)
    with pytest.raises(UserError, match="differ"):
        refuse(compare(np.full_like(wanted, np.nan), wanted, labels), "torch-export", 1.0)


def test_the_limit_of_a_drop_is_inclusive() -> None:
    check = Check(images=4, accuracy=0.5, checkpoint_accuracy=0.75, agreement=0.5, largest_difference=1.0, largest_logit=1.0)
    refuse(check, "onnx-int8", 0.25)
    with pytest.raises(UserError, match="falls by more"):
        refuse(check, "onnx-int8", 0.24)


# Which images


def test_a_student_is_checked_on_the_images_of_its_store(finished: str) -> None:
    config = ExportConfig(checkpoint="x", format="onnx", out="x.onnx")
    assert str(training_images(config, {"made": {"config": {"store": finished}}})) == Store.open(finished).plan.images
    assert str(training_images(config, {"made": {"config": {"images": "shapes:train=7"}}})) == "shapes:train=7,test=1000,seed=0"
    with pytest.raises(UserError, match=r"not where they were \(.*\); name them by --images"):
        training_images(config, {"made": {"config": {"store": finished + "/gone"}}})
    with pytest.raises(UserError, match="does not say which images it was trained on; name them by --images"):
        training_images(config, {"made": {}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere holds no checkpoint"),
        ({"checkpoint": "letters"}, "the checkpoint .* knows other classes .* give --images of its own classes"),
        ({"checkpoint": "broken"}, "not all finite numbers"),
        ({"images": "nonsense"}, "'nonsense' names no images"),
        ({"images": "shapes:train=0"}, "no images in split 'train'"),
        ({"images": "shapes:train=9"}, "9 training images, too few for a validation split"),
        ({"out": "directory.onnx"}, "directory.onnx: it is a directory"),
        ({"out": "file/x.onnx"}, "cannot write .*file/x.onnx: .*/file is no directory"),
        ({"out": "x.pt2"}, "x.pt2 does not fit --format onnx: its name must end in .onnx"),
        ({"limit": 0}, "--limit must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(student: str, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    specs = {
        "letters": dataclasses.replace(SPEC, classes=tuple("abcdefghij")),
        "large": dataclasses.replace(SPEC, image_shape=(64, 64)),
        "broken": SPEC,
    }
    given: dict[str, Any] = {"checkpoint": student, "out": "x.onnx", "images": IMAGES, "limit": 5} | changes
    if (name := given["checkpoint"]) in specs:
        model = build(specs[name], 0)
        if name == "broken":
            torch.nn.init.constant_(model.network.classifier.bias, float("inf"))
        checkpoint.save(model, tmp_path / name, {})
        given["checkpoint"] = str(tmp_path / name)
    (tmp_path / "directory.onnx").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        export(ExportConfig(format="onnx", **given | {"out": str(tmp_path / given["out"])}))
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_the_command_tells_the_check_and_writes(smallest: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "student.onnx"
    done = run_program("igkd", ["export", "--checkpoint", smallest, "--format", "onnx-int8", "--out", str(out), "--max-drop", "1"])
    assert (done.returncode, done.stderr) == (0, "")
    checked = json.loads({e.key: e.value for e in onnx.load(out).metadata_props}["checked"])
    assert f"differ by at most {checked['largest_difference']:.3g} " in done.stdout
    assert f"{checked['checkpoint_accuracy']:.2%} -> {checked['accuracy']:.2%} on 30 validation images" in done.stdout
    assert str(out) in done.stdout and {p.name for p in out.parent.iterdir()} == {"student.onnx"}


def test_an_unknown_format_is_answered_by_the_known_ones(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--checkpoint", "x", "--format", "tflite", "--out", "x.tflite"])
    with pytest.raises(SystemExit) as stopped:
        parse(ExportConfig, "igkd export")
    said = capsys.readouterr()
    assert stopped.value.code and "onnx-int8" in said.err + said.out
