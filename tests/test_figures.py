"""The figures that the README and docs quote are those of the rows in results/.

Each is computed here, formatted by the function of its kind, and looked up in the text. Whoever changes rows or text sees what the sentence
has to be.
"""

from collections.abc import Callable, Iterator

import pytest

from igkd.evaluation.comparisons import families, grouped
from igkd.evaluation.significance import Comparison, wilson_interval
from tests.helpers.figures import EVIDENCE, JOBS, MEASURED, ROOT, Quote, check, compared, difference, ends, read, share


def night() -> Iterator[Quote]:
    groups, comparisons = compared("night/rows.jsonl", "test")

    def label(arm: str) -> str:
        """As the text has it: the paper's arms are named so, the others are strong-night's."""
        return arm.removesuffix(", paper") if arm.endswith(", paper") else f"{arm}, strong-night"

    def of(arm: str, reference: str) -> Comparison:
        return comparisons[label(arm), label(reference)]

    contents = ("other", "black", "noise", "brightness")
    arms = ["kd", "student", "ig", "kd+ig", *(f"kd+ig, {content}" for content in contents), "student, paper", "kd+ig, paper"]
    for arm in arms:
        group = groups[label(arm)]
        mean, low, high = group.interval
        agreement = sum(row["test"]["agreement"] for row in group.rows) / len(group.rows)
        yield MEASURED, f"| {arm} | {share(mean)} | {ends(low, high)} | {len(group.by_seed)} | {share(agreement)} |"
    best, gain, worth = of("kd", "student"), of("kd+ig", "kd"), of("kd+ig", "student")
    yield MEASURED, f"kd against student {difference(best)} points (95 % interval {ends(best.low, best.high)})"
    yield MEASURED, f"kd+ig against kd {difference(gain)} ({ends(gain.low, gain.high)})"
    yield MEASURED, f"kd+ig against student {difference(worth)} ({ends(worth.low, worth.high)})"
    paper = of("kd+ig, paper", "student, paper")
    yield MEASURED, f"By the paper's recipe, kd+ig against student {difference(paper)} ({ends(paper.low, paper.high)})"
    behind = sorted(-of("kd+ig", f"kd+ig, {content}").difference for content in contents)
    yield (
        MEASURED,
        f"The method with the image's own map was {share(behind[0])} to {share(behind[-1])} points below each of its four controls",
    )
    significant = [pair for pair, found in comparisons.items() if found.p_holm < 0.05]
    assert significant == [(label("kd+ig, noise"), label("kd"))]  # which the text says
    noise = of("kd+ig, noise", "kd")
    yield MEASURED, f"Of the report's {len(comparisons)} comparisons one is, that of a control:"
    yield MEASURED, f"noise instead of a map against kd {difference(noise)} ({ends(noise.low, noise.high)})"


def demo() -> Iterator[Quote]:
    teacher, *students = read("demo/results.json")
    test = teacher["test"]
    interval = ends(*wilson_interval(test["correct"], test["count"]))
    yield MEASURED, f"| teacher | {teacher['parameters']:,} | {share(test['accuracy'])} | {interval} | 1 |"
    groups = grouped(students, "test")
    for group in groups:
        mean, low, high = group.interval
        cells = f"{group.first['parameters']:,} | {share(mean)} | {ends(low, high)} | {len(group.by_seed)} |"
        yield MEASURED, f"| {group.label} | {cells}"
    alone, kd, both = (group.label for group in groups)
    found = {(one.arm, one.reference): one for family in families(groups) for one in family.comparisons}
    better, equal = found[kd, alone], found[both, kd]
    assert better.better and not equal.significant
    yield MEASURED, f"better than the student alone by {share(better.difference)} points ({ends(better.low, better.high)})"
    yield MEASURED, f"no difference was found ({difference(equal)} points, {ends(equal.low, equal.high)})"


def choices() -> Iterator[Quote]:
    _, comparisons = compared("choices/rows.jsonl", "validation")
    found = comparisons["kd+ig, strong-night", "kd+ig, strong-night, without its weight of distillation"]
    lost = f"lost {share(found.difference)} points (95 % interval {ends(found.low, found.high)}, p {found.p:.2f} before Holm's correction)"
    yield "docs/decisions.md", lost


def latency() -> Iterator[Quote]:
    measured = read("latency.json")
    one = {(row["network"], row["runtime"]): row for row in measured["latency"] if row["batch"] == row["threads"] == 1}
    names = {"teacher": "teacher, `assets/cifar10-teacher`", "mobilenet:cut=5": "cut 5", "lean:4:32x2,48x2,96x2": "lean `4:32x2,48x2,96x2`"}
    for network, name in names.items():
        rows = [one[network, runtime] for runtime in ("torch, float32", "ONNX Runtime, float32", "ONNX Runtime, int8")]
        times = " | ".join(f"{row['p50']:.2f}" for row in rows)
        ratio = "1" if network == "teacher" else f"{rows[2]['times_as_fast_as_teacher_in_runtime']:.1f}"
        eager = rows[2]["times_as_fast"]
        cells = f"| {times} | {ratio} | {eager:.{0 if eager >= 10 else 1}f} |"
        yield MEASURED, cells
        assert any(line.startswith(f"| {name} |") and cells in line for line in (ROOT / MEASURED).read_text().splitlines())
    int8 = measured["checks"]["onnx-int8"]
    yield MEASURED, f"gives the float32 one's answer to {share(int8['agreement'])} % of {int8['images']:,} validation images"
    yield MEASURED, f"({share(int8['accuracy'])} % right instead of {share(int8['checkpoint_accuracy'])} %)"
    lean = one["lean:4:32x2,48x2,96x2", "ONNX Runtime, int8"]
    fast = f"{lean['times_as_fast_as_teacher_in_runtime']:.1f} times as fast as the teacher in int8 and {lean['times_as_fast']:.0f} times"
    yield "docs/decisions.md", fast


def lean() -> Iterator[Quote]:
    row = read("lean/all-images/kd-seed0.json")
    test, last = row["test"], row["history"][-1]
    yield MEASURED, f"this one had {share(test['accuracy'])} % of the test images right"
    fast = {(one["network"], one["batch"], one["threads"], one["runtime"]): one for one in read("latency.json")["latency"]}
    times = fast["lean:4:32x2,48x2,96x2", 1, 1, "ONNX Runtime, int8"]["times_as_fast_as_teacher_in_runtime"]
    interval = ends(*wilson_interval(test["correct"], test["count"]))
    yield EVIDENCE, f"{share(test['accuracy'])} % and was {times:.1f} times as fast"
    yield MEASURED, f"95 % interval over images {interval}"
    yield MEASURED, f"(float32: {share(last['validation_accuracy'])} %)"
    yield "docs/decisions.md", f"{share(last['train_accuracy'])} % of the training crops themselves"
    before = read("lean/all-images/kd-seed0-kernel3.json")["test"]["accuracy"]
    yield "docs/decisions.md", f"went from {share(before)} to {share(test['accuracy'])} % of the test images"
    cut, *others = read("lean/cifar10/latencies.json")["networks"]
    sizes, speeds = sorted(one["parameters"] for one in others), sorted(one["times_as_fast"] for one in others)
    yield "docs/decisions.md", f"cut 5 is {cut['times_as_fast']:.1f} times as fast as `assets/cifar10-teacher`"
    yield "docs/decisions.md", f"{len(others)} random lean students of {sizes[0]:,} to {sizes[-1]:,} parameters"
    yield "docs/decisions.md", f"are {speeds[0]:.1f} to {speeds[-1]:.1f} times as fast"
    eager = sorted(one["times_as_fast_as_eager"] for one in others if one["times_as_fast"] >= 8)
    assert len(eager) == 2
    yield "docs/decisions.md", f"which is {eager[0]:.0f} and {eager[1]:.0f} times as fast as the teacher by torch"
    loaded = sorted(one["times_as_fast"] for one in read("lean/latencies-under-load.json")["networks"][1:])
    yield "docs/decisions.md", f"the same networks were {loaded[0]:.1f} to {loaded[-1]:.1f} times as fast"
    trained = [share(one["history"][-1]["validation_accuracy"]) for one in read("lean/cifar10/rows.jsonl")]
    yield "docs/decisions.md", f"the two had {trained[0]} and {trained[1]} %, cut 5 had {trained[2]} %"


def attribution() -> Iterator[Quote]:
    agreement, speed = read("attribution/agreement.json")["agreement"], read("attribution/speed.json")
    fast, plain, captum = (agreement[name] for name in ("fast: openvino-bf16", "fast: openvino", "captum, internal_batch_size=50"))
    rates = {name: found["images_per_second"] for name, found in speed["speed"].items()}
    best, ours, theirs = rates["fast: openvino-bf16"], rates["fast: torch"], rates["captum, internal_batch_size=50"]
    published = rates["captum, published setting (batch 8)"]
    yield JOBS, f"mean cosine {fast['mean_cosine']:.5f} to 300 steps on {fast['images']} images"
    yield JOBS, f"Captum's own 50 steps have {captum['mean_cosine']:.5f}"
    yield JOBS, f"{best / theirs:.1f} times as fast as Captum with `internal_batch_size=50`"
    yield (
        JOBS,
        f"{best / published:.0f} times as fast as the published loop on two cores with AVX-512, {ours / theirs:.1f} times without OpenVINO",
    )
    yield MEASURED, f"maps, {best / theirs:.1f} times as fast as Captum"
    yield "docs/scaling.md", f"{best:.1f} images/s by OpenVINO, {theirs:.1f} by Captum"
    yield "docs/decisions.md", f"leaves the mean cosine to 300 nodes at {fast['mean_cosine']:.5f} on {fast['images']} images"
    yield "docs/decisions.md", f"is {best / rates['fast: openvino']:.1f} times as fast"
    errors = (one["median_completeness_error"] for one in (plain, fast))
    yield "docs/decisions.md", "the median error rises from {:.2f} to {:.2f} logits".format(*errors)
    largest = (100 * one["largest_difference"] for one in (plain, fast))
    yield "docs/decisions.md", "the largest difference of a pixel from {:.0f} to {:.0f} % of the map's maximum".format(*largest)
    nodes = f"{plain['mean_cosine']:.5f} with 50 midpoints and {captum['mean_cosine']:.5f} with 50 Gauss-Legendre nodes"
    yield "docs/decisions.md", f"cosine to 300 nodes is {nodes} (means over {plain['images']} and {captum['images']} test images"
    ray = speed["ray"]
    one, two = ray["ray, 1"] / ray["bare, 1"], ray["ray, 2"] / ray["bare, 2"]
    yield "docs/scaling.md", f"{ray['ray, 1']:.2f} images/s of the bare loop's {ray['bare, 1']:.2f} ({one:.0%})".replace("%", " %")
    yield "docs/scaling.md", f"{ray['ray, 2']:.2f} of {ray['bare, 2']:.2f} ({two:.0%})".replace("%", " %")


def homogeneous() -> Iterator[Quote]:
    measured = read("attribution/homogeneous.json")
    rates = {name: found["images_per_second"] for name, found in measured["speed"].items()}
    one, captum = rates["one pass: torch"], rates["captum, internal_batch_size=50"]
    yield "docs/decisions.md", f"One pass of that teacher has {one:.0f} images/s, {one / captum:.0f} times Captum's"
    yield "docs/decisions.md", f"with 50 nodes, torch has {rates['fast: torch']:.1f} and OpenVINO {rates['fast: openvino-bf16']:.1f}"
    assert measured["agreement"]["one pass: torch"]["lowest_cosine"] > 0.99999


def precision() -> Iterator[Quote]:
    formats = read("attribution/precision.json")["formats"]
    whole, half = formats["float32"], formats["float16"]
    scaled, root = formats["uint8 + scale"], formats["uint8 + scale, of the square root"]
    assert f"{half['mean_rank_correlation']:.6f}" == f"{half['mean_cosine']:.6f}"
    yield (
        "docs/decisions.md",
        f"float16 has cosine and rank correlation {half['mean_cosine']:.6f} to float32 at {half['ratio']:.2f} of the bytes",
    )
    yield "docs/decisions.md", f"({half['bytes']:,.0f} of {whole['bytes']:,.0f} a map"
    for name, one in (("uint8 with a scale a map", scaled), ("uint8 of the square root", root)):
        yield "docs/decisions.md", f"{name} {one['mean_cosine']:.5f} and {one['mean_rank_correlation']:.4f} at {one['ratio']:.2f}"


def training() -> Iterator[Quote]:
    rates = {name: loop["images_per_second"] for name, loop in read("train.json")["loops"].items()}
    single, half = rates["ours, float32"], rates["ours, bfloat16"]
    yield "docs/decisions.md", f"bfloat16 it was {half / single:.2f} times as fast"
    for network, loops in read("train-amx.json")["networks"].items():
        ours = (f"{loops[name]['images_per_second']:.0f} ({loops[name]['ratio']:.1f}x)" for name in ("float32", "bfloat16", "compiled"))
        yield MEASURED, f"| `{network}` | {loops['published loop']['images_per_second']:.0f} | {' | '.join(ours)} |"


def cost() -> Iterator[Quote]:
    names = {"assets/cifar10-teacher": "CIFAR-10's MobileNet-V2", "torchvision:mobilenet_v2": "MobileNet-V2, 1,000 classes"}
    names["torchvision:resnet50"] = "ResNet-50"
    for row in read("cost.json")["rows"]:
        name = names[row["teacher"].split(",")[0]]
        seconds = f"{row['seconds']:.3f} | {row['captum_seconds']:.3f} | {row['ratio']:.1f}"
        memory = f"{row['peak_mib']:,.0f} | {row['captum_peak_mib']:,.0f}"
        yield "docs/scaling.md", f"| {name} | {row['side']} | {row['steps']} | {seconds} | {memory} |"


def scale() -> Iterator[Quote]:
    measured = read("scale.json")
    before, named = measured["before"], measured["engine_named"]["rows"][0]
    for row, label in [(row, "") for row in measured["rows"]] + [(row, f", as it was at {before['commit']}") for row in before["rows"]]:
        began = f"{row['planning_seconds']:.2f} s | {row['driver_megabytes']} MB"
        rate = f"{row['computed']:,} rows in {row['seconds']:.0f} s | {row['rows_per_second']:,.0f}"
        ended = f"{row['verify_seconds']:.1f} s | {row['verify_megabytes']} MB | {row['problems']}"
        yield "docs/scaling.md", f"| {row['rows']:,}{label} | {began} | {rate} | {ended} |"
    now, then = (rows[-1]["rows_per_second"] for rows in (measured["rows"], before["rows"]))
    yield "docs/scaling.md", f"a million rows take {now / then:.1f} times as many a second"
    yield "docs/scaling.md", f"100,000 rows took {named['planning_seconds']:.2f} s and {named['driver_megabytes']} MB"


def large() -> Iterator[Quote]:
    row = read("large.json")
    rates = row["images_per_second"]
    names = ("reading", "attribution, 50 steps", "resized crops", f"training `{row['student']}`")
    for name, digits in zip(names, (0, 2, 0, 0), strict=True):
        yield "docs/large-pictures.md", f"| {name} | {rates[name.split(' `')[0]]:.{digits}f} |"
    reading = f"{row['share of reading beside training']:.0%}".replace("%", " %")
    yield "docs/large-pictures.md", f"spends {reading} of its time on reading"
    yield "docs/large-pictures.md", f"attributes up to {rates['reading']:.0f} images/s"
    yield "docs/large-pictures.md", f"beside other work (load {row['load']:.0f})"


def networks() -> Iterator[Quote]:
    """Maps of networks of many kinds against Captum's, and what mirroring does to them."""
    for row in read("networks/random.json")["rows"]:
        cells = f"`{row['network']}` | {row['kind']} | {row['engine']} | {row['cosine']:.5f} | {row['mirrored']:.2f} |"
        yield MEASURED, f"| {cells}"
        assert row["cosine"] > 0.9999
    trained = [*read("networks/trained-cifar10.json")["rows"], *read("networks/trained-shapes.json")["rows"]]
    paper, homogeneous, transformer = (f"{row['mirrored']:.2f}" for row in trained)
    yield "docs/decisions.md", f"MobileNet-V2 {paper}, the homogeneous teacher {homogeneous} (both of CIFAR-10), and"
    yield "docs/decisions.md", f"a small vision transformer trained on drawn shapes {transformer} (`results/networks/`)"


@pytest.mark.parametrize(
    "quotes", [networks, night, demo, choices, latency, lean, attribution, homogeneous, precision, training, cost, scale, large]
)
def test_figures_in_text_are_those_of_the_rows(quotes: Callable[[], Iterator[Quote]]) -> None:
    check(quotes())
