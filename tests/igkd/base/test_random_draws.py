import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from igkd.base.random_draws import shuffled, uniform

IDS = np.arange(50_000)
distinct_ids = st.lists(st.integers(0, 2**62), min_size=1, max_size=60, unique=True).map(lambda x: np.array(x, dtype=np.int64))


def uniform_in_plain_integers(seed: int, purpose: str, image_id: int) -> float:
    """The same numbers from Python's integers, so that no overflow rule of numpy is trusted."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=16).digest()
    low, high = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    word = mix(mix((image_id * 0x9E3779B97F4A7C15 + low) & mask) ^ high)
    return (word >> 11) / 2**53


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**70), 2**70), st.text(max_size=20), distinct_ids)
def test_the_numbers_are_those_of_the_algorithm(seed: int, purpose: str, ids: np.ndarray) -> None:
    drawn = uniform(seed, purpose, ids)
    assert drawn.tolist() == [uniform_in_plain_integers(seed, purpose, i) for i in ids.tolist()]
    assert ((drawn >= 0) & (drawn < 1)).all()


@pytest.mark.parametrize("purpose", ["epoch 1 flip", "epoch 2 dy", "validation", ""])
@pytest.mark.parametrize("ids", [IDS, IDS * 1000 + 17, IDS * 2**40], ids=["dense", "sparse", "large"])
def test_uniform(purpose: str, ids: np.ndarray) -> None:
    drawn = uniform(3, purpose, ids)
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    # The low digits as well: nothing that is read off a number may be coarser than it looks.
    assert stats.kstest(drawn * 2**20 % 1, "uniform").pvalue > 1e-3
    assert len(np.unique(drawn)) == len(drawn)


def test_purposes_seeds_and_neighbours_are_independent() -> None:
    purposes = [f"epoch {epoch} {what}" for epoch in (1, 2, 11) for what in ("dy", "dx", "flip", "overlay", "exponent", "order")]
    rows = [uniform(seed, purpose, IDS) for seed in (0, 1) for purpose in purposes]
    rows += [np.roll(rows[0], 1), np.roll(rows[0], 256)]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    # 703 pairs: the largest of so many standard normals stays below 5 but once in thousands of tries.
    assert np.abs(correlation).max() < 5 / np.sqrt(len(IDS))
    for one, two in itertools.combinations(rows[:8], 2):
        table, _, _ = np.histogram2d(one, two, bins=8, range=[[0, 1], [0, 1]])
        assert stats.chisquare(table.ravel()).pvalue > 1e-5


def test_seed_and_purpose_do_not_run_together() -> None:
    assert not np.array_equal(uniform(1, "1 x", IDS), uniform(11, "x", IDS))
    assert not np.array_equal(uniform(1, "2", IDS), uniform(12, "", IDS))


@settings(max_examples=50, deadline=None)
@given(distinct_ids, st.data())
def test_a_number_does_not_depend_on_the_other_ids(ids: np.ndarray, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=30)), dtype=np.int64)
    assert np.array_equal(uniform(5, "x", ids)[rows], uniform(5, "x", ids[rows]))


@settings(max_examples=50, deadline=None)
@given(distinct_ids, st.integers(0, 100), st.data())
def test_shuffling_permutes_and_subsets_keep_their_order(ids: np.ndarray, seed: int, data: st.DataObject) -> None:
    order = shuffled(seed, "order", ids)
    assert sorted(order.tolist()) == list(range(len(ids)))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), dtype=bool)
    subset = ids[kept]
    in_whole = [i for i in ids[order].tolist() if i in set(subset.tolist())]
    assert subset[shuffled(seed, "order", subset)].tolist() == in_whole


def test_every_place_is_as_likely_for_every_image() -> None:
    ids = np.arange(5)
    where = np.array([shuffled(seed, "order", ids) for seed in range(4000)])
    for position in range(5):
        assert stats.chisquare(np.bincount(where[:, position], minlength=5)).pvalue > 1e-4
