"""Random numbers that are functions of what they are for, not of when they are drawn.

Every choice of a run (order, crop, flip, overlay, validation split, subset) is read off `uniform(seed, purpose, ids)`: so it does not
depend on the batch size, on the number of workers, on what was drawn before, or on which other images are in the data set.
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
        seed: of the run.
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
    """Choose `size` of N images so that every group has its share, to less than one image (method of largest remainders).

    Args:
        groups: int64 (N,), such as labels.
        size: between 0 and N.
        ids: int64 (N,), what an image is drawn by; its index if left out.

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
    """The test split of images that come without one, the same in every run: a fifth, at least one of two, stratified by class.

    Args:
        labels: int64 (N,), the label of every image.
        ids: as in `stratified_choice`.

    Returns:
        bool (N,), True for test.
    """
    size = max(1, round(len(labels) / 5)) if len(labels) > 1 else 0
    return stratified_choice(labels, size, 0, "test split", ids)
