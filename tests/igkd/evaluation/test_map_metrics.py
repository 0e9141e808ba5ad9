import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import spearmanr
from torch import Tensor, nn

from igkd.base.errors import UserError
from igkd.evaluation.map_metrics import (
    areas,
    check_finite,
    cosine,
    mass_inside,
    perturbation_curves,
    places,
    pointing_hits,
    random_maps,
    rank_correlation,
    top_overlap,
)
from igkd.networks.network import Classifier, NetworkSpec, build
from tests.helpers.networks import lively
from tests.helpers.training import TINY, random_samples

IDS = np.arange(5) * 7 + 3


def some_maps(seed: int, count: int = 5, shape: tuple[int, int] = (8, 6)) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=(count, *shape)).astype(np.float32)


def test_similarities_are_scipys_map_by_map() -> None:
    a, b = some_maps(0), some_maps(1)
    b = 0.3 * a + b
    b[2] = np.round(b[2])  # with ties
    for i in range(5):
        one, other = a[i].ravel().astype(float), b[i].ravel().astype(float)
        assert cosine(a, b)[i] == pytest.approx(1 - cosine_distance(one, other))
        assert rank_correlation(a, b)[i] == pytest.approx(spearmanr(one, other).statistic)
        tops = [set(np.argsort(-values, kind="stable")[:5].tolist()) for values in (one, other)]  # 10 % of 48 pixels
        assert top_overlap(a, b)[i] == len(tops[0] & tops[1]) / 5


@pytest.mark.parametrize("similarity", [cosine, rank_correlation, top_overlap])
def test_a_map_is_like_itself_in_any_unit_and_not_like_another(similarity: Callable[..., np.ndarray]) -> None:
    a, b = some_maps(0), some_maps(1)
    assert similarity(a, 1e-3 * a) == pytest.approx(np.ones(5))
    assert similarity(a, b).max() < 0.9
    assert np.array_equal(similarity(a, b), similarity(b, a))
    order = [3, 0, 4, 1, 2]
    assert np.array_equal(similarity(a[order], b[order]), similarity(a, b)[order])


def test_maps_without_contrast_are_like_no_other() -> None:
    a, zero, flat = some_maps(0), np.zeros((5, 8, 6)), np.full((5, 8, 6), 0.1)
    assert not cosine(a, zero).any() and not cosine(zero, zero).any()
    assert top_overlap(a, zero).tolist() == top_overlap(flat, zero).tolist() == [5 / 48] * 5  # as of maps drawn at random
    assert not rank_correlation(a, zero).any() and rank_correlation(a, flat) == pytest.approx(np.zeros(5), abs=1e-12)


def test_unrelated_maps_share_a_tenth_of_their_top_tenth() -> None:
    a, b = (random_maps(np.arange(300), (16, 16), seed) for seed in (0, 1))
    # 26 pixels of 256, hypergeometric: the mean of 300 has a standard deviation of 0.0033.
    assert abs(top_overlap(a, b).mean() - 26 / 256) < 0.014
    assert abs(rank_correlation(a, b).mean()) < 0.015


def test_places_count_from_the_largest_and_take_ties_in_reading_order() -> None:
    assert places(np.array([[[1.0, 5.0], [5.0, 0.0]]])).tolist() == [[[2, 0], [1, 3]]]
    maps = some_maps(4)
    assert np.array_equal(places(maps).reshape(5, -1), spearman_places(maps))


def spearman_places(maps: np.ndarray) -> np.ndarray:
    """The number of larger pixels, counted."""
    flat = maps.reshape(len(maps), -1)
    return np.array([[(row > value).sum() for value in row] for row in flat])


def test_a_random_map_depends_on_seed_and_image_alone() -> None:
    maps = random_maps(IDS, (8, 6))
    assert maps.shape == (5, 8, 6) and len(np.unique(maps)) == maps.size
    assert np.array_equal(random_maps(IDS[::-1], (8, 6)), maps[::-1])
    assert not np.isin(random_maps(IDS, (8, 6), seed=1), maps).any()


def test_mass_and_peak_on_the_object() -> None:
    maps = np.array([[[1.0, 2.0], [3.0, 4.0]], [[8.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = np.array([[[False, False], [True, True]]] * 2 + [[[True, False], [False, False]]])
    assert mass_inside(maps, masks).tolist() == [0.7, 0.0, 0.25]
    assert pointing_hits(maps, masks).tolist() == [1, 0, 0.25]


class Linear(Classifier):
    """Logits (s, 0), where s is the sum of weight * normalised pixel: its maps and curves are known."""

    def __init__(self, weight: Tensor, mean: tuple[float, ...] = (0.0, 0.0, 0.0), std: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__(NetworkSpec(classes=("yes", "no"), image_shape=(weight.shape[1], weight.shape[2]), mean=mean, std=std))
        self.weight = nn.Parameter(weight)

    def from_normalised(self, x: Tensor) -> Tensor:
        evidence = (self.weight * x).sum(dim=(1, 2, 3))
        return torch.stack([evidence, torch.zeros_like(evidence)], dim=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_pixels_of_equal_weight_give_a_logistic_curve() -> None:
    total = 4.0
    model = Linear(torch.full((3, 8, 8), total / 192))
    pixels, labels = torch.ones(2, 3, 8, 8), torch.tensor([0, 1])
    deletion, insertion = perturbation_curves(model, pixels, labels, random_maps(IDS[:2], (8, 8)), steps=16)
    share = np.linspace(0, 1, 17)
    for curve, kept in ((deletion, 1 - share), (insertion, share)):
        assert curve[0] == pytest.approx(sigmoid(total * kept), abs=1e-6)
        assert curve[1] == pytest.approx(sigmoid(-total * kept), abs=1e-6)
    exact = (math.log1p(math.exp(total)) - math.log(2)) / total  # the integral of sigmoid(total * t)
    assert areas(deletion)[0] == pytest.approx(exact, abs=1e-3) and areas(insertion)[0] == pytest.approx(exact, abs=1e-3)


def test_curves_of_a_linear_model_by_hand() -> None:
    """Every pixel has its own weight; the sums are taken in numpy, pixel by pixel, behind a normalisation."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    weight = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    model, samples = Linear(weight / 3, mean, std), random_samples(6, size=5)
    pixels, labels, maps = samples.pixels[..., :4], torch.tensor([0, 1, 0, 1, 1, 0]), some_maps(2, 6, (5, 4))
    got = perturbation_curves(model, pixels, labels, maps, steps=7)
    for i in range(6):
        x = (pixels[i].double().numpy() / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
        evidence = (weight.double().numpy() / 3 * x).sum(axis=0).ravel()
        order = np.argsort(-maps[i].ravel())
        sign = 1 if labels[i] == 0 else -1
        for step in range(8):
            first = order[: round(step * 20 / 7)]
            inside = evidence[first].sum()
            assert got[1][i, step] == pytest.approx(sigmoid(sign * inside), abs=1e-5)
            assert got[0][i, step] == pytest.approx(sigmoid(sign * (evidence.sum() - inside)), abs=1e-5)


def test_the_models_own_evidence_beats_a_random_map_and_that_its_opposite() -> None:
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)) / 8
    model, pixels, labels = Linear(weight), random_samples(20, size=8).pixels, torch.zeros(20, dtype=torch.int64)
    evidence = (weight * pixels.float() / 255).sum(dim=1).detach().numpy()
    maps = (evidence, random_maps(np.arange(20), (8, 8)), -evidence)
    curves = [perturbation_curves(model, pixels, labels, values) for values in maps]
    deletion, insertion = ([areas(pair[kind]).mean() for pair in curves] for kind in (0, 1))
    assert deletion[0] + 0.1 < deletion[1] < deletion[2] - 0.1 and insertion[0] - 0.1 > insertion[1] > insertion[2] + 0.1


def test_curves_do_not_depend_on_batches_dtype_or_order_of_images() -> None:
    model, samples, maps = Linear(torch.randn(3, 16, 16) / 9), random_samples(7), some_maps(3, 7, (16, 16))
    labels = samples.labels % 2
    whole = perturbation_curves(model, samples.pixels, labels, maps)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    by_one = perturbation_curves(model, samples.pixels.float() / 255, labels, maps, batch_size=3)
    moved = perturbation_curves(model, samples.pixels[order], labels[order], maps[order.numpy()], batch_size=1)
    for kind in (0, 1):
        assert by_one[kind] == pytest.approx(whole[kind], abs=1e-5)
        assert moved[kind] == pytest.approx(whole[kind][order.numpy()], abs=1e-5)
        assert np.ptp(whole[kind], axis=1).min() > 1e-3


def test_maps_that_are_no_numbers_are_refused_by_image() -> None:
    maps, ids = np.ones((3, 2, 2), np.float32), np.array([4, 9, 11])
    check_finite(maps, ids, "the student")
    for value in (np.inf, np.nan):
        maps[1, 0, 1] = value
        with pytest.raises(UserError, match="the student gives a map of image 9 that is not all finite numbers: .* train it anew"):
            check_finite(maps, ids, "the student")


def test_deleted_pixels_have_the_colour_of_the_baseline() -> None:
    model, samples = lively(build(TINY, 0)), random_samples(3)
    maps, colour = random_maps(samples.ids, samples.shape), (0.1, 0.8, 0.4)
    deletion, insertion = perturbation_curves(model, samples.pixels, samples.labels, maps, steps=4, baseline=colour)
    pixels = samples.pixels.float() / 255
    even = torch.tensor(colour).view(1, 3, 1, 1).expand_as(pixels)
    deleted = torch.from_numpy(places(maps)).unsqueeze(1) < round(0.25 * maps[0].size)
    for curve, seen in ((deletion[:, 1], torch.where(deleted, even, pixels)), (insertion[:, 1], torch.where(deleted, pixels, even))):
        with torch.inference_mode():
            expected = model(seen).double().softmax(1).gather(1, samples.labels[:, None])[:, 0]
        np.testing.assert_allclose(curve, expected, rtol=1e-4)
    own = perturbation_curves(model, samples.pixels, samples.labels, maps, steps=4)
    named = perturbation_curves(model, samples.pixels, samples.labels, maps, steps=4, baseline=model.spec.mean)
    assert np.array_equal(own, named) and not np.allclose(own[0], deletion)
