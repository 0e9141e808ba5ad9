import itertools

import pytest

from igkd.base.choices import ARMS, LOGIT_PARTS, MAP_PARTS, PARTS, canonical_arm, canonical_arms, parts_of
from igkd.base.errors import UserError
from igkd.config.optimisation import Objective, Optimisation
from igkd.training.terms import TERMS


def test_the_order_of_an_arms_parts_makes_no_other_run() -> None:
    for parts in itertools.combinations(PARTS, 3):
        assert {canonical_arm("+".join(order)) for order in itertools.permutations(parts)} == {"+".join(parts)}
        assert parts_of("+".join(parts)) == parts
    assert canonical_arm("student") == "student" and parts_of("student") == ()
    assert canonical_arms(["ig+kd", "student", "kd+ig"]) == ("kd+ig", "student") and canonical_arms(None) is None
    assert all(canonical_arm(arm) == arm for arm in ARMS)


@pytest.mark.parametrize("arm", ["", "kd+", "KD", "kd + ig", "kd,ig", "kd+student", "student+student", "kd+kd", "ce", "kd+ig+gradients"])
def test_a_wrong_arm_is_one_sentence_that_lists_the_parts(arm: str) -> None:
    with pytest.raises(UserError) as caught:
        canonical_arm(arm)
    said = str(caught.value)
    assert repr(arm) in said and "\n" not in said and all(f"{part} (" in said for part in PARTS)


def test_the_parts_of_arms_are_the_terms_of_the_loss_and_the_overlay() -> None:
    assert set(PARTS) - {"ig"} == set(TERMS) - {"ce"}
    made = {name: term(Objective(), Optimisation()) for name, term in TERMS.items()}
    assert {name for name, term in made.items() if "logits" in term.signals} == LOGIT_PARTS
    assert MAP_PARTS - {"ig"} == {name for name, term in made.items() if "ig" in term.signals}
