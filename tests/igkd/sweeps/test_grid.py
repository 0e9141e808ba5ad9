import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from igkd.base.choices import ARMS
from igkd.base.errors import UserError
from igkd.config.sweeps import GRIDS, PAPER_STUDENTS, AblateConfig
from igkd.sweeps.grid import CHOICES, PLAIN, Cell, cells, settled
from igkd.sweeps.space import inside, settings_of, space, tuned


def grid(masks: bool = False, **changes: Any) -> list[Cell]:
    store: Any = SimpleNamespace(plan=SimpleNamespace(has_mask=masks))
    return cells(AblateConfig(store="s", out="o", **changes), store)


def test_arms_are_eight_by_seeds() -> None:
    found = grid()
    assert Counter(cell.config.arm for cell in found) == dict.fromkeys(ARMS, 3)
    assert {cell.config.seed for cell in found} == {0, 1, 2}
    assert [cell.config.seed for cell in found] == sorted(cell.config.seed for cell in found)  # each arm before the next seed
    assert len({cell.config.out for cell in found}) == 24 and all(cell.config.out.startswith("o/students/") for cell in found)


def test_arms_are_any_sums_and_their_parts_in_any_order_are_one_run() -> None:
    found = grid(arms=("at+kd", "ig+at+kd", "kd+at"), seeds=(0,))
    assert [cell.config.arm for cell in found] == ["kd+at", "kd+ig+at"] == [cell.label for cell in found]
    with pytest.raises(UserError, match=r"has no part 'gradients'.*kd \("):
        grid(arms=("kd+gradients",))


def test_compression_is_eight_cuts_of_three_arms() -> None:
    found = grid(grids=("compression",), seeds=(5,))
    assert sorted({cell.config.student for cell in found}) == sorted(PAPER_STUDENTS) and len(found) == 24
    assert {cell.config.arm for cell in found} == {"student", "kd", "kd+ig"}


@pytest.mark.parametrize("name", GRIDS)
def test_any_grid_may_be_of_networks_of_ones_own(name: Any) -> None:
    lean, paper = ("lean:2:16x1,32x1", "mobilenet:cut=5")
    found, usual = grid(grids=(name,), students=(lean, paper), recipes=("strong",)), grid(grids=(name,), recipes=("strong",))
    assert {cell.config.student for cell in found} == {lean, paper} and len(found) == len({cell.name for cell in found})
    of_one = [cell.label for cell in usual if cell.config.student == paper]
    assert Counter(cell.label for cell in found) == Counter(2 * of_one)


def test_controls_differ_from_the_method_in_their_content_alone() -> None:
    found = {cell.label: cell.config for cell in grid(grids=("controls",), seeds=(0,))}
    assert set(found) == {"student", "kd", "kd+ig", "kd+ig, other", "kd+ig, black", "kd+ig, noise", "kd+ig, brightness"}
    own = found["kd+ig"]
    for label, config in found.items():
        if config.content != "own":
            assert dataclasses.replace(config, content="own", out=own.out) == own, label
    assert "kd+ig, mask" in {cell.label for cell in grid(masks=True, grids=("controls",))}


def test_controls_are_of_every_arm_that_uses_maps() -> None:
    found = [cell.label for cell in grid(grids=("controls",), arms=("kd", "map+kd"), seeds=(0,))]
    assert found == ["kd", "kd+map", "kd+map, other", "kd+map, noise", "kd+map, brightness"]  # nothing can be similar to a black map
    found = [cell.label for cell in grid(grids=("controls",), arms=("kd", "kd+map"), contents=("other",), seeds=(0, 1))]
    assert found == 2 * ["kd", "kd+map", "kd+map, other"]
    with pytest.raises(UserError, match="the grid is empty"):
        grid(grids=("controls",), contents=())


def test_monte_carlo_runs_see_four_fifths() -> None:
    found = grid(grids=("monte-carlo", "arms"), arms=("student",), seeds=(0,))
    assert [(cell.config.share, cell.label) for cell in found] == [(0.8, "student"), (1.0, "student")]
    assert len({cell.name for cell in found}) == 2


def test_each_choice_of_a_recipe_is_undone_once() -> None:
    whole, *undone = grid(grids=("choices",), recipes=("strong",), seeds=(0,), teacher="t")
    assert whole.label == "kd+ig, strong"
    paper = grid(arms=("kd+ig",), seeds=(0,), teacher="t")[0].config
    for cell in undone:
        changed = {f.name for f in dataclasses.fields(paper) if getattr(cell.config, f.name) != getattr(whole.config, f.name)} - {"out"}
        names = CHOICES[cell.label.split("without ")[1]]
        assert changed and changed <= set(names)
        assert all(getattr(cell.config, name) == PLAIN.get(name, getattr(paper, name)) for name in names)
    # Together they undo the recipe: what is left is where it goes and how long it takes.
    all_names = {name for cell in undone for name in CHOICES[cell.label.split("without ")[1]]}
    left = {f.name for f in dataclasses.fields(paper) if getattr(whole.config, f.name) != getattr(paper, f.name)} - all_names
    assert left == {"out", "recipe", "epochs"}


@pytest.mark.parametrize("views", [None, "views"])
@pytest.mark.parametrize("chosen", [{"logits": "crop"}, {"live": True}, {"logits": "views"}, {"precision": "bfloat16"}])
def test_a_choice_is_undone_also_where_auto_would_take_it_again(chosen: dict[str, Any], views: Any, tmp_path: Path) -> None:
    """A store with views gives them to `auto`, and many a machine bfloat16: then a run "without" it would be the run with it."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps(chosen))
    store: Any = SimpleNamespace(
        plan=SimpleNamespace(has_mask=False, teacher_network="mobilenet", image_shape=(32, 32)), views=views, manifest={"rows": 10}
    )
    config = AblateConfig(store="s", out=str(tmp_path), grids=("choices",), recipes=(str(path),), arms=("kd",), seeds=(0,), teacher="t")
    if views is not None:
        store.views = SimpleNamespace(bytes_per_image=10)
    whole, undone = settled(cells(config, store), store)
    kinds = [(cell.config.which_logits, cell.config.precision) for cell in (whole, undone)]
    whichever = "image" if views is None else "views"
    assert kinds[1] == ((whichever, "float32") if "precision" in chosen else ("image", "auto")) and kinds[0] != kinds[1]


def test_a_choice_that_an_arm_makes_no_use_of_is_not_undone() -> None:
    def undone(*arms: Any) -> set[str]:
        return {cell.without for cell in grid(grids=("choices",), recipes=("strong",), seeds=(0,), teacher="t", arms=arms)} - {""}

    of_logits = {"its weight of distillation", "the teacher's answer to the crop"}
    assert of_logits <= undone("kd") and undone("kd") - undone("student") == of_logits
    assert undone("feat+kd") == undone("kd") - {"the teacher's answer to the crop"}  # feat asks the teacher in any case


def test_normalised_pixels_are_no_choice_of_a_recipe_that_starts_from_weights(tmp_path: Path) -> None:
    """Their normalisation is that of the weights."""
    path = tmp_path / "r.json"
    for init, expected in (({}, {"normalised pixels", "cutout"}), ({"init": "default"}, {"cutout"})):
        path.write_text(json.dumps({"normalise": True, "cutout": 4} | init))
        found = grid(grids=("choices",), recipes=(str(path),), seeds=(0,), arms=("student",))
        assert {cell.without for cell in found} - {""} == expected


def test_grids_share_the_cells_they_have_in_common() -> None:
    everything = grid(grids=GRIDS, arms=("student", "kd", "kd+ig"), seeds=(0,), recipes=("paper",))
    # 3 arms = 3 of the controls = 3 of cut 5 = the paper's recipe with nothing to undo; 4 controls, 7 other cuts, 3 Monte-Carlo runs.
    assert len(everything) == 3 + 4 + 7 * 3 + 3


@pytest.mark.parametrize(
    "changes", [{"arms": ()}, {"seeds": ()}, {"grids": ()}, {"recipes": ()}, {"grids": ("compression",), "students": ()}]
)
def test_an_empty_grid_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the grid is empty"):
        grid(**changes)


def test_an_impossible_cut_and_recipe_are_refused() -> None:
    with pytest.raises(UserError, match="mobilenet:cut=4: cut 4 is not one of"):
        grid(grids=("compression",), students=("mobilenet:cut=4",), arms=("at",))
    with pytest.raises(UserError, match="recipe 'weak' is not one of"):
        grid(recipes=("weak",))


def test_settings_of_a_search_are_a_configuration_and_back() -> None:
    base = grid(arms=("kd+ig+at+map+dkd+lskd",), recipes=("strong",), seeds=(0,), teacher="t")[0].config
    ranges = space(base)
    assert set(ranges) == {
        "learning_rate", "weight_decay", "alpha", "temperature", "overlay", "exponent_low", "exponent_high", "gamma",
        "map_weight", "dkd", "beta", "lskd",
    }  # fmt: skip
    settings = {name: (distribution.low + distribution.high) / 2 for name, distribution in ranges.items()}  # type: ignore[attr-defined]
    config = tuned(base, settings)
    assert config.exponents == (settings["exponent_low"], settings["exponent_high"])
    assert settings_of(vars(config), ranges) == settings
    assert settings_of({**vars(config), "exponents": list(config.exponents)}, ranges) == settings  # as a file has them
    assert inside(settings, ranges) and not inside(settings | {"alpha": 2.0}, ranges)
    assert inside(settings_of(vars(base), ranges), ranges)  # the recipe itself can be proposed
    assert set(space(dataclasses.replace(base, arm="student"))) == {"learning_rate", "weight_decay"}
