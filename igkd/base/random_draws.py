"""Random numbers computed from what they are for, by hashing, instead of being drawn from a generator one after another.

Every random choice of a run (order, crop, flip, overlay, validation split, subset) is computed from `uniform(seed, purpose, ids)`. So it
does not depend on the batch size, the number of workers, earlier draws, or which other images are in the data set.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words that leaves no visible structure."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, purpose: str, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each id.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as "epoch 3 flip"; different purposes are independent.
        ids: int64 (N,) image ids.

    Returns:
        float64 (N,), a pure function of (seed, purpose, id).
    """
    key = np.frombuffer(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=16).digest(), dtype=np.uint64)
    words = _mix(_mix(ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key[0]) ^ key[1])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(seed: int, purpose: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions (N,) into `ids` in random order; any subset of the ids keeps its relative order."""
    return np.argsort(uniform(seed, purpose, ids), kind="stable")


def stratified_choice(
    groups: NDArray[np.int64], size: int, seed: int, purpose: str, ids: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Choose `size` of N images so that every group is represented in proportion, to within one image (method of largest remainders).

    Args:
        groups: int64 (N,), such as labels.
        size: between 0 and N.
        ids: int64 (N,), the ids that the random numbers are computed from; by default each image's index.

    Returns:
        bool (N,), a pure function of the arguments.
    """
    rank = uniform(seed, purpose, np.arange(len(groups)) if ids is None else ids)
    names, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    exact = count * (size / max(1, len(groups)))
    share = np.floor(exact).astype(np.int64)
    first = rank[np.unique(group, return_index=True)[1]] if len(names) else rank  # breaks ties
    share[np.lexsort((first, share - exact))[: size - share.sum()]] += 1
    order = np.lexsort((rank, group))
    place = np.arange(len(groups)) - np.repeat(np.cumsum(count) - count, count)
    chosen = np.zeros(len(groups), dtype=np.bool_)
    chosen[order] = place < np.repeat(share, count)
    return chosen


def validation_mask(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The validation split, the same in every run: 5,000 training images, or a tenth if that is less, stratified by class.

    Args:
        labels: int64 (N,), the label of every training image in the data set's order.

    Returns:
        bool (N,), True for validation.
    """
    return stratified_choice(labels, min(5000, len(labels) // 10), 0, "validation")


def default_test_mask(labels: NDArray[np.int64], ids: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """The test split of a source that has none: a fifth of the images, at least one if there are two, stratified by class.

    Args:
        labels: int64 (N,), the label of every image.
        ids: int64 (N,), as in `stratified_choice`.

    Returns:
        bool (N,), True for test; the same in every run.
    """
    size = max(1, round(len(labels) / 5)) if len(labels) > 1 else 0
    return stratified_choice(labels, size, 0, "test split", ids)
