import base64
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from igkd.report.charts import image_uri, map_uri, outline, without_grid
from igkd.report.pipeline_page import Focus, render, summary_table
from tests.helpers.pages import HOSTILE, Page, gallery_row, report, result


def test_the_page_fetches_nothing_and_describes_its_pictures() -> None:
    html = render(report())
    page = Page(html)
    assert not page.open
    assert not {"script", "link", "iframe", "object", "video"} & {tag for tag, _ in page.tags}
    assert "http" not in html and "@import" not in html
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert value and value.startswith(("data:image/png;base64,", "#"))
        if tag == "img":
            assert attributes["alt"]
    charts = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(charts) == 2 and all(attributes["aria-label"] for attributes in charts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in page.tags if tag == "use"}
    assert targets and targets <= {f"#{name}" for name in ids}


def test_the_same_report_is_the_same_page() -> None:
    assert render(report()) == render(report())


def test_hostile_text_is_text() -> None:
    students = [result(HOSTILE, seed) | {"name": HOSTILE} for seed in (0, 1)]
    hostile = report(students, arm=HOSTILE, title=HOSTILE, summary_note=HOSTILE, store={HOSTILE: HOSTILE}, commands=[HOSTILE])
    hostile = replace(hostile, gallery=[gallery_row(HOSTILE, HOSTILE)])
    plain = Page(render(report([result("kd", seed) for seed in (0, 1)], commands=["one"], store={"a": "b"})))
    page = Page(render(hostile))
    assert [tag for tag, _ in page.tags if tag != "span"] == [tag for tag, _ in plain.tags if tag != "span"]
    assert page.text.count('<script>alert("x")</script>') > 8
    assert {key for _, attributes in page.tags for key in attributes} == {key for _, attributes in plain.tags for key in attributes}


def test_several_seeds_show_their_mean_and_t_interval() -> None:
    students = [result("kd", seed, correct) for seed, correct in enumerate((600, 620, 640))]
    low, high = stats.t.interval(0.95, 2, loc=0.62, scale=0.02 / math.sqrt(3))
    page = Page(render(report(students)))
    assert page.row("kd")[1:6] == ["62.0", f"{100 * low:.1f} \u2013 {100 * high:.1f}", "", "3", "61.0"]
    assert "t 95" in page.text and "no claim" not in page.text
    assert summary_table(report(students)).split()[-4:] == ["62.0", "%", f"{100 * low:.1f}-{100 * high:.1f}", "3"]


def test_several_seeds_say_which_differences_were_found() -> None:
    counts = {"student": (500, 521, 540), "kd": (600, 620, 642), "kd+ig": (590, 640, 630)}
    students = [result(arm, seed, correct) for arm, found in counts.items() for seed, correct in enumerate(found)]
    tested = stats.ttest_rel(counts["kd"], counts["student"])
    low, high = tested.confidence_interval(0.95)
    for text in (summary_table(report(students)), Page(render(report(students))).text):
        assert f"kd is better than student by 10.03 points, 95 % interval {low / 10:.2f} to {high / 10:.2f}, 3 seeds." in text
        assert "no difference found between kd+ig and kd (" in text and "kd+ig is better" in text
    assert "better" not in summary_table(report(students[:2])) + render(report(students[::3]))


def test_one_seed_shows_its_wilson_interval_and_claims_nothing() -> None:
    z = 1.959963984540054
    centre, half = 0.61 + z * z / 2000, z * math.sqrt(0.61 * 0.39 / 1000 + z * z / 4_000_000)
    low, high = ((centre + sign * half) / (1 + z * z / 1000) for sign in (-1, 1))
    page = Page(render(report()))
    assert page.row("kd")[1:3] == ["61.0", f"{100 * low:.1f} \u2013 {100 * high:.1f}"]
    assert page.row("kd")[4:] == ["60.0", "543,498", "4.12\u2009\u00d7", "58.7 M"]
    assert "Wilson" in page.text and "One seed supports no claim of a difference" in page.text and "over the seeds" not in page.text


def test_ten_thousand_images_earn_a_second_decimal() -> None:
    assert Page(render(report([result("kd", correct=9202, count=10_000)]))).row("kd")[1] == "92.02"


def test_cuts_of_one_arm_are_told_apart_and_a_repeated_seed_is_refused() -> None:
    page = Page(render(report([result("kd"), result("kd", network="mobilenet:cut=9")])))
    assert page.row("kd, mobilenet:cut=5") and page.row("kd, mobilenet:cut=9")
    with pytest.raises(ValueError, match="two results of one seed"):
        summary_table(report([result("kd"), result("kd")]))


def test_what_is_missing_is_left_out() -> None:
    bare = report([], gallery=[], focus=[], latency=[], store={}, commands=[], teacher=result(None) | {"history": [], "provenance": {}})
    text = Page(render(bare)).text
    assert "No student was trained" in text
    for heading in ("What the models look at", "Where the maps fall", "Size and speed"):
        assert heading not in text
    unmasked = Page(render(report(gallery=[gallery_row(mask=False)])))
    assert "true outline" not in unmasked.text and "true outline" in Page(render(report())).text


def test_right_and_wrong_are_told_in_words() -> None:
    text = " ".join(Page(render(report())).text.split())
    assert "✓right: ring" in text and "✗wrong: not ring" in text


@pytest.mark.parametrize("fill", [0.0, 3.5, math.nan, math.inf])
def test_a_map_without_contrast_is_drawn(fill: float) -> None:
    flat = np.full((16, 16), fill, np.float32)
    row = replace(gallery_row(), teacher_map=flat, overlay=np.full((16, 16, 3), fill))
    focus = [Focus(model="kd", inside=math.nan, low=math.nan, high=math.nan, hits=math.nan, images=0)]
    assert "no value" in render(report(gallery=[row], focus=focus))


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_pictures_keep_their_pixels_and_large_ones_shrink() -> None:
    image = gallery_row().image
    assert np.array_equal(decoded(image_uri(image)), image)
    assert decoded(image_uri(np.zeros((300, 200, 3), np.uint8))).shape == (96, 64, 3)
    assert decoded(map_uri(np.ones((300, 200)))).shape == (96, 64, 3)


def test_a_map_is_dark_at_its_least_bright_at_its_greatest_and_grey_where_undefined() -> None:
    picture = decoded(map_uri(np.array([[0.0, 1.0], [0.5, np.nan]]))).astype(int).sum(axis=2)
    assert picture[0, 0] < picture[1, 0] < picture[0, 1] and picture[1, 1] == 3 * 128
    lone = np.zeros((16, 16))
    lone[3, 4] = 1e-9
    assert decoded(map_uri(lone)).sum(axis=2).argmax() == 3 * 16 + 4


@pytest.mark.parametrize("period", [2, 4])
def test_a_grid_of_strided_layers_is_not_drawn(period: int) -> None:
    """What varies slowly stays; what is not finite stays where it is."""
    down, across = np.mgrid[:80, :90]
    slow = np.exp(-((down - 40) ** 2 + (across - 45) ** 2) / 800).astype(np.float32)
    grid = (1 + np.cos(2 * np.pi * down / period) * 0.9) * (1 + np.cos(2 * np.pi * across / period) * 0.9)
    smooth = without_grid((slow * grid).astype(np.float32))[4:-4, 4:-4]
    assert np.abs(smooth - slow[4:-4, 4:-4]).max() < 0.03 < np.abs(slow * grid - slow).max()
    holed = slow.copy()
    holed[7, 9] = np.nan
    assert np.array_equal(np.argwhere(np.isnan(without_grid(holed))), [[7, 9]])


def test_the_outline_is_every_edge_of_the_mask() -> None:
    mask = np.zeros((3, 4), bool)
    mask[0, 1] = True
    assert sorted(outline(mask).replace("M", " M").split(" M")[1:]) == ["1 0h1", "1 0v1", "1 1h1", "2 0v1"]
    assert outline(np.zeros((3, 3), bool)) == ""


def test_the_summary_fits_a_terminal() -> None:
    long = [
        result(arm, seed, 99_999, 100_000, network)
        for arm in ("kd", "kd+ig+at-with-a-long-name")
        for seed in range(12)
        for network in ("mobilenet:cut=5", "mobilenet:cut=17,width=0.5,stride=2")
    ]
    table = summary_table(report([row | {"parameters": 123_456_789, "compression": 1121.71} for row in long]))
    assert len(table.split("\n\n")[0].splitlines()) == 6 and max(map(len, table.splitlines())) <= 80


def test_a_large_report_stays_small() -> None:
    arms = [f"arm {i}" for i in range(8)]
    row = gallery_row(size=224)
    row = replace(row, student_maps=dict.fromkeys(arms, row.teacher_map), student_predictions=dict.fromkeys(arms, "ring"))
    html = render(report([result(arm, seed) for arm in arms for seed in range(3)], gallery=[row] * 10))
    assert len(html) < 2_500_000


def judged(row: dict[str, Any], agreement: float, cosine: float) -> dict[str, Any]:
    """A result row whose test was the whole evaluation."""
    area = {"deletion": {"area": 0.25}, "insertion": {"area": 0.75}}
    likeness = {"mean": cosine, "standard_error": 0.01, "control": 0.125}
    maps = {"count": 50, "cosine": likeness, "rank_correlation": likeness, "top_overlap": likeness, "student": area, "random": area}
    return row | {"test": row["test"] | {"calibration_error": 0.0625, "agreement": agreement, "maps": maps}}


def test_the_evaluation_is_shown_as_its_mean_over_seeds() -> None:
    rows = [judged(result("kd", seed), agreement, agreement / 2) for seed, agreement in ((7, 0.5), (8, 0.75))]
    page = Page(render(report(rows)))
    assert ["kd", "1.200", "6.2", "62.5"] in page.rows and ["teacher", "1.200", "–", "–"] in page.rows
    similar = ["0.312", "0.125", "0.312", "0.125", "0.312"]
    assert ["kd", *similar, "0.250", "0.250", "0.750", "0.750"] in page.rows
    plain = Page(render(report()))
    assert ["kd", "1.200", "–"] in plain.rows and "of another image" not in plain.text
