"""What is measured of a network, against formulas and Captum."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd.attribution import attributor
from igkd.base.errors import UserError
from igkd.evaluation.evaluate import evaluate, predict
from igkd.evaluation.map_metrics import cosine
from igkd.evaluation.map_samples import likeness, look
from igkd.images import drawn_shapes
from igkd.images.class_names import distinct
from igkd.images.samples import Samples
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, build
from igkd.training.loop import evaluate_split
from tests.helpers.evaluations import near
from tests.helpers.networks import lively
from tests.helpers.training import TINY, random_samples


def test_the_figures_are_those_of_training_and_those_by_class_make_up_the_whole(student: str, samples: Samples) -> None:
    model = checkpoint.load(student)
    row, trained = evaluate(model, samples), evaluate_split(model, samples)
    assert {k: row[k] for k in trained} == pytest.approx(trained, rel=1e-6) and 0 < row["correct"] < 30
    assert set(row) == {"accuracy", "correct", "count", "loss", "calibration_error", "per_class", "confusion"}
    assert list(row["per_class"]) == list(drawn_shapes.CLASSES)
    assert np.mean(list(row["per_class"].values())) == pytest.approx(row["accuracy"])  # as many images of every class
    counts = np.array(row["confusion"])
    assert np.trace(counts) == row["correct"] and counts.sum() == row["count"]
    assert (np.diag(counts) / counts.sum(axis=1)).tolist() == pytest.approx(list(row["per_class"].values()))
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
