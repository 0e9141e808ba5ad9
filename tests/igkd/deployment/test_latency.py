import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from igkd.base.errors import UserError
from igkd.config.command_line import parse
from igkd.config.latency import LatencyConfig
from igkd.deployment import formats
from igkd.deployment.latency import CALLS, measure, table, take_turns
from igkd.deployment.timed_process import open_model, timed
from igkd.images import drawn_shapes
from igkd.networks import checkpoint
from igkd.networks.network import NetworkSpec, build
from igkd.report.gallery import warm_latencies
from tests.helpers.paths import ROOT
from tests.helpers.programs import run_program

SPEC = NetworkSpec(classes=drawn_shapes.CLASSES, image_shape=(32, 32), name="mobilenet:cut=17,width=0.35,stride=2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained student as a checkpoint and in float32 formats."""
    root = tmp_path_factory.mktemp("files")
    model = build(SPEC, 0).eval()
    checkpoint.save(model, root / "checkpoint", {})
    (root / "x.onnx").write_bytes(formats.with_metadata(formats.to_onnx(model), {}))
    (root / "x.pt2").write_bytes(formats.archive(formats.to_torch_export(model), {}))
    return {"checkpoint": str(root / "checkpoint"), "onnx": str(root / "x.onnx"), "torch-export": str(root / "x.pt2")}


def test_models_take_turns_and_only_rounds_of_the_same_number_are_compared() -> None:
    """The machine is ten times slower in the second round; the second model is always twice as fast."""
    asked: list[str] = []

    def clock(name: str, milliseconds: list[float]):  # noqa: ANN202
        def passes(count: int) -> list[float]:
            asked.append(name)
            return [milliseconds[asked.count(name) - 1]] * count

        return passes

    timings = take_turns({"a": clock("a", [99, 4, 40, 4]), "b": clock("b", [99, 2, 20, 2])}, rounds=3)
    assert asked == ["a", "b"] * 4
    assert timings["a"].rounds == (4, 40, 4) and timings["b"].rounds == (2, 20, 2)
    assert timings["b"].times_as_fast(timings["a"]) == 2 and timings["a"].times_as_fast(timings["a"]) == 1
    assert timings["a"].calls == 3 * CALLS and timings["a"].p50 == 4 and timings["a"].p99 == 40


def test_percentiles_are_over_single_passes() -> None:
    values = iter([0.0] * CALLS + [float(i) for i in range(1, 20 * CALLS + 1)])
    timing = take_turns({"a": lambda count: [next(values) for _ in range(count)]}, rounds=20)["a"]
    assert (timing.p50, timing.p95, timing.p99) == pytest.approx((50.5, 95.05, 99.01))


def test_the_first_pass_of_a_turn_does_not_count() -> None:
    passes: list[int] = []
    assert len(timed(lambda: passes.append(1), 4)) == 4 and len(passes) == 5


def test_every_kind_of_model_is_timed_in_a_process_of_its_own(files: dict[str, str]) -> None:
    rows = measure(list(files.values()), batches=(2,), threads=(1,), rounds=2)
    assert [row["model"] for row in rows] == list(files.values())
    for row in rows:
        assert (row["batch"], row["threads"], row["calls"], len(row["rounds"])) == (2, 1, 2 * CALLS, 2)
        assert 0 < row["p50"] <= row["p95"] <= row["p99"] and row["times_as_fast"] > 0
    assert rows[0]["times_as_fast"] == 1
    memory = {kind: row["peak_mib"] for kind, row in zip(files, rows, strict=True)}
    # Less than torch alone takes, however large the process that started it is.
    assert 10 < memory["onnx"] < 0.5 * min(memory["checkpoint"], memory["torch-export"])
    lines = table(rows).splitlines()
    assert len(lines) == 4 and "p95" in lines[0] and "peak MiB" in lines[0] and lines[1].endswith("1.00")


def test_an_onnx_file_is_run_without_torch(files: dict[str, str]) -> None:
    program = "import sys; sys.modules['torch'] = None; from igkd.deployment.timed_process import main; main(sys.argv[1], '3', '1')"
    done = subprocess.run([sys.executable, "-c", program, files["onnx"]], cwd=ROOT, input="2\n", capture_output=True, text=True, check=True)
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True} and len(answer["milliseconds"]) == 2


def test_the_batch_is_what_was_asked_for(files: dict[str, str]) -> None:
    for model in files.values():
        result = open_model(model, 3, 1)()
        assert len(result[0] if isinstance(result, list) else result) == 3


def test_float_input_of_another_tool_is_timed_too(tmp_path: Path) -> None:
    given, got = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3, 4, 4]) for n in ("x", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [given], [got])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), tmp_path / "other.onnx")
    assert open_model(str(tmp_path / "other.onnx"), 5, 1)()[0].shape == (5, 3, 4, 4)


def test_the_reports_latencies_are_of_teacher_and_cuts(files: dict[str, str]) -> None:
    teacher, student = build(dataclasses.replace(SPEC, name="mobilenet:width=0.35,stride=2"), 0), build(SPEC, 0)
    rows = warm_latencies(teacher, [student, build(SPEC, 1)])
    assert [(row.model, row.batch) for row in rows] == [
        (m, b) for b in (1, 64) for m in ("teacher", "student, mobilenet:cut=17,width=0.35,stride=2")
    ]
    for row in rows:
        assert 0 < row.p50 <= row.p95 and row.threads == 1
        assert row.times_as_fast == 1 if row.model == "teacher" else row.times_as_fast > 0


def test_rows_come_as_they_are_found_and_stay_when_it_is_stopped(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    settings = ["--batches", "1", "2", "--threads", "1", "--rounds", "1", "--out", str(out)]
    program = [sys.executable, "-m", "igkd", "latency", files["onnx"], *settings]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    rows = json.loads(out.read_text())["latency"]
    assert "".join(said) + rest == table(rows) + "\n" and rows[0]["batch"] == 1


def test_the_command_prints_a_table_and_writes_the_row(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    short = ["--batches", "1", "--threads", "1", "--rounds", "1"]
    done = run_program("igkd", ["latency", files["onnx"], files["checkpoint"], *short, "--out", str(out)])
    assert (done.returncode, done.stderr) == (0, "latency: batches of 1 by 1 thread(s)\n")
    row = json.loads(out.read_text())
    assert done.stdout.rstrip("\n") == table(row["latency"]) and len(row["latency"]) == 2
    assert row["provenance"]["command"].startswith("igkd latency ") and row["provenance"]["versions"]["onnxruntime"]


def test_what_cannot_be_timed_is_one_sentence(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no network")
    (tmp_path / "no.pt2").write_bytes(b"no program")
    for model, words in {
        str(tmp_path / "gone.onnx"): "there is no such file; make one with",
        str(tmp_path / "no.onnx"): "ONNX Runtime cannot read",
        str(tmp_path / "no.pt2"): "torch.export cannot read",
        str(tmp_path): "holds no checkpoint",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            measure([files["onnx"], model], (1,), (1,), 1)
        assert model in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "words"), [(["a", "a"], "none of them twice"), (["a", "--rounds", "0"], "at least 1"), ([], "at least one")]
)
def test_settings_that_mean_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, args: list[str], words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["latency", *args])
    with pytest.raises(UserError, match=words):
        parse(LatencyConfig, "igkd latency")
