"""What the page of igkd explain shows is what networks answer and what Captum computes."""

import base64
import io

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from PIL import Image

from igkd.attribution import attributor
from igkd.evaluation.map_metrics import cosine, rank_correlation
from igkd.images import drawn_shapes
from igkd.networks import checkpoint
from igkd.report import charts
from igkd.report.explain import Explanation, cards, explain, render, summary
from tests.helpers.explanations import IDS, STEPS, config
from tests.helpers.pages import Page


@pytest.fixture(scope="module")
def found(student: str) -> Explanation:
    return explain(config(student))


@pytest.fixture(scope="module")
def page(found: Explanation) -> Page:
    return Page(render(found))


def pixels(i: int) -> torch.Tensor:
    """Image i in [0, 1], float (1, 3, 32, 32), as the test split draws it."""
    return torch.from_numpy(drawn_shapes.draw(0, "test", i)[0]).permute(2, 0, 1)[None].float() / 255


def picture(uri: str | None) -> np.ndarray:
    assert uri is not None and uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_the_maps_are_those_of_captum_for_these_images_in_the_order_asked_for(student: str, teacher: str, found: Explanation) -> None:
    rows = cards(found)
    assert [row["id"] for row in rows] == list(IDS) and [row["label"] for row in rows] == [
        drawn_shapes.CLASSES[drawn_shapes.label(i)] for i in IDS
    ]
    for row, i in zip(rows, IDS, strict=True):
        assert np.array_equal(row["image"], drawn_shapes.draw(0, "test", i)[0]) and row["scaled"] is None
        assert list(row["looks"]) == ["teacher", "student"]
        for name, where in (("teacher", teacher), ("student", student)):
            model = checkpoint.load(where)
            x = model.normalise(pixels(i))
            captum = IntegratedGradients(model.from_normalised)
            start = model.normalise(checkpoint.load(teacher).mean.expand(1, 3, 32, 32))  # the same colour for both
            reference = (
                captum.attribute(x, start, target=drawn_shapes.label(i), n_steps=STEPS, method="riemann_middle")
                .detach()
                .abs()
                .sum(1)
                .numpy()
            )
            # Batch norms folded round otherwise, which a corner of ReLU6 now and then makes a hundredth of the maximum.
            shown = row["looks"][name]["map"]
            assert cosine(shown[None], reference)[0] > 0.9999 and np.abs(shown - reference).max() < 0.02 * reference.max()
            assert row["looks"][name]["target"] == row["label"]


def test_an_images_map_is_the_attributors_whatever_is_beside_it(student: str, teacher: str, found: Explanation) -> None:
    model = checkpoint.load(student)
    alone = attributor(model, "ig", "torch", STEPS, checkpoint.load(teacher).spec.mean)(
        (pixels(17) * 255).to(torch.uint8), torch.tensor([drawn_shapes.label(17)]), torch.tensor([17])
    )
    assert np.array_equal(cards(found)[2]["looks"]["student"]["map"], alone.ig[0].numpy())
    single = cards(explain(config(student, ids=(17,))))
    assert np.array_equal(single[0]["looks"]["student"]["map"], alone.ig[0].numpy())


def test_answers_are_the_softmax_by_hand(student: str, teacher: str, found: Explanation) -> None:
    for row, i in zip(cards(found), IDS, strict=True):
        for name, where in (("teacher", teacher), ("student", student)):
            with torch.inference_mode():
                logits = checkpoint.load(where)(pixels(i))[0].double().numpy()
            probabilities = np.exp(logits) / np.exp(logits).sum()
            best = np.argsort(-probabilities)[:3]
            answers = row["looks"][name]["answers"]
            assert [c for c, _ in answers] == [drawn_shapes.CLASSES[c] for c in best]
            assert [p for _, p in answers] == pytest.approx(probabilities[best].tolist(), rel=1e-3)


def test_likeness_has_the_image_befores_map_as_its_control(found: Explanation) -> None:
    rows = cards(found)
    student, teacher = (np.stack([row["looks"][name]["map"] for row in rows]) for name in ("student", "teacher"))
    for name, similarity in (("cosine", cosine), ("rank correlation", rank_correlation)):
        own, control = similarity(student, teacher), similarity(student, teacher[[2, 0, 1]])
        assert [row["likeness"][name] for row in rows] == [pytest.approx(pair) for pair in zip(own, control, strict=True)]
        assert (name, pytest.approx(own.mean()), pytest.approx(control.mean()), 3) in summary(found)


def test_the_page_shows_those_pictures_and_figures(page: Page, found: Explanation, student: str) -> None:
    assert not page.open and not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 9 and all(attributes["alt"] for attributes in images) and len({attributes["alt"] for attributes in images}) == 9
    rows = cards(found)
    for place, row in enumerate(rows):
        shown = [picture(attributes["src"]) for attributes in images[3 * place : 3 * place + 3]]
        assert np.array_equal(shown[0], row["image"])
        for drawn, name in zip(shown[1:], ("teacher", "student"), strict=True):
            assert np.array_equal(drawn, picture(charts.map_uri(row["looks"][name]["map"])))
            assert f"{name}, for {row['label']}" in page.text
            for answer, probability in row["looks"][name]["answers"]:
                assert answer in page.text and f"{100 * probability:.1f}\xa0%" in page.text
        for own, control in row["likeness"].values():
            assert f"{own:.2f}" in page.text and f"{control:.2f}" in page.text
    for name, own, control, count in summary(found):
        assert page.row(name) == [name, f"{own:.3f}", f"{control:.3f}", str(count)]
    answers = {name: [row["looks"][name]["answers"][0][0] for row in rows] for name in ("teacher", "student")}
    for name, given in answers.items():
        right = sum(a == row["label"] for a, row in zip(given, rows, strict=True))
        assert page.row(name)[1] == f"{right} of 3"
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    text = " ".join(page.text.split())
    assert f"the same answer to {same} of 3 images" in text and "the teacher’s mean colour, for both networks" in text
    assert text.count("right: ") + text.count("wrong: ") == 6 and student in page.row("student")


def test_without_ids_the_choice_is_stratified(student: str) -> None:
    rows = cards(explain(config(student, ids=None, limit=10, steps=1)))
    assert sorted(row["label"] for row in rows) == sorted(drawn_shapes.CLASSES) and len({row["id"] for row in rows}) == 10
