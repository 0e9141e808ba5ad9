"""Random choices by id, stratified by class, and the validation split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.base.random_draws import stratified_choice, uniform, validation_mask

# --- choices

labels = st.lists(st.integers(0, 6), max_size=300).map(lambda x: np.array(x, dtype=np.int64))


@settings(max_examples=100, deadline=None)
@given(labels, st.data())
def test_a_stratified_choice_is_exact(groups: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(groups)))
    chosen = stratified_choice(groups, size, 3, "p")
    assert chosen.shape == groups.shape and chosen.sum() == size
    assert np.array_equal(chosen, stratified_choice(groups, size, 3, "p"))
    relabelled = stratified_choice(groups * 5 + 2, size, 3, "p")
    assert np.array_equal(relabelled, chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_equal_classes_have_equal_shares(classes: int, each: int, data: st.DataObject) -> None:
    groups = np.array(data.draw(st.permutations(list(range(classes)) * each)))
    size = data.draw(st.integers(0, len(groups)))
    counts = np.bincount(groups[stratified_choice(groups, size, 0, "limit")], minlength=classes)
    assert counts.sum() == size and np.abs(counts - size / classes).max() < 1


@settings(max_examples=100, deadline=None)
@given(labels, st.data())
def test_unequal_classes_have_their_shares(groups: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(groups)))
    share = np.bincount(groups, minlength=7) * size / max(1, len(groups))
    counts = np.bincount(groups[stratified_choice(groups, size, 0, "limit")], minlength=7)
    assert np.abs(counts - share).max(initial=0) < 1 + 1e-9


def test_one_large_class_among_many_small_ones_has_its_share() -> None:
    groups = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 1001)])
    assert abs(int(stratified_choice(groups, 400, 0, "limit")[:1000].sum()) - 200) <= 1


@pytest.mark.parametrize(("each", "expected"), [(5000, 500), (100, 10), (7000, 500)])
def test_validation_is_a_tenth_and_at_most_5000(each: int, expected: int) -> None:
    truth = np.tile(np.arange(10), each)
    chosen = validation_mask(truth)
    assert np.bincount(truth[chosen]).tolist() == [expected] * 10
    assert np.array_equal(chosen, validation_mask(truth))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=50), st.integers(0, 2**40), st.data())
def test_a_number_depends_on_its_own_id_only(ids: list[int], seed: int, data: st.DataObject) -> None:
    whole = dict(zip(ids, uniform(seed, "flip", np.array(ids)).tolist(), strict=True))
    some = data.draw(st.lists(st.sampled_from(ids)))
    assert uniform(seed, "flip", np.array(some, dtype=np.int64)).tolist() == [whole[i] for i in some]
