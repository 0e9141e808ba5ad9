from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igkd.base.errors import UserError
from igkd.images.open import open_images
from igkd.images.samples import Samples, decode_all, load_samples
from igkd.images.source import ImageSource, Record
from tests.helpers.pictures import encoded, write_parquet

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (8, 4, 6, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Callable[[dict[int, bytes | None]], ImageSource]:
    """Eight pictures of 4x6 pixels, some of them replaced."""

    def make(replaced: dict[int, bytes | None]) -> ImageSource:
        images = [replaced.get(i, encoded(PIXELS[i])) for i in range(8)]
        return open_images(f"parquet:{write_parquet(tmp_path / 'train-0.parquet', images, [3, 1, 4, 1, 5, 0, 2, 6], row_group=3)}")

    return make


def test_each_entry_is_of_one_image(source: Callable[..., ImageSource]) -> None:
    ids = np.array([6, 0, 3, 7])
    samples, left_out = load_samples(source({}), "train", ids)
    assert left_out == [] and samples.ids.tolist() == ids.tolist() and samples.labels.tolist() == [2, 3, 1, 6]
    assert samples.pixels.dtype == torch.uint8 and samples.shape == (4, 6) and len(samples) == 4
    assert np.array_equal(samples.pixels.permute(0, 2, 3, 1).numpy(), PIXELS[ids])


BROKEN = {
    "text": (b"nothing", "does not decode"),
    "null": (None, "has no bytes"),
    "size": (encoded(np.zeros((5, 6, 3), np.uint8)), "is 5x6 pixels .* where 4x6 is expected; --image-size"),
    "jpeg": (encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")[:1500], "truncated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_image_is_refused_by_default(source: Callable[..., ImageSource], kind: str) -> None:
    data, words = BROKEN[kind]
    with pytest.raises(UserError, match=rf"image 5 \(5.png row 5\) .*{words}.*--bad-images skip"):
        load_samples(source({5: data}), "train", np.arange(8))


def test_bad_images_are_skipped_with_their_reasons(source: Callable[..., ImageSource]) -> None:
    replaced = {i: data for i, (data, _) in zip((0, 2, 5, 7), BROKEN.values(), strict=True)}
    samples, left_out = load_samples(source(replaced), "train", np.arange(8), on_bad="skip")
    assert samples.ids.tolist() == [1, 3, 4, 6] and samples.labels.tolist() == [1, 1, 5, 2]
    assert np.array_equal(samples.pixels.permute(0, 2, 3, 1).numpy(), PIXELS[[1, 3, 4, 6]])
    assert [record.image_id for record, _ in left_out] == [0, 2, 5, 7] and all(reason for _, reason in left_out)


def test_nothing_left_is_an_error(source: Callable[..., ImageSource]) -> None:
    with pytest.raises(UserError, match=r"none of 8 image\(s\) can be used; the first does not decode"):
        load_samples(source(dict.fromkeys(range(8), b"x")), "train", np.arange(8), on_bad="skip")


def test_mixed_sizes_are_resized_on_request(source: Callable[..., ImageSource]) -> None:
    samples, _ = load_samples(source({2: encoded(np.full((40, 90, 3), 9, np.uint8))}), "train", np.arange(8), (4, 6), resize=True)
    assert samples.shape == (4, 6) and (samples.pixels[2] == 9).all()
    assert np.array_equal(samples.pixels[3].permute(1, 2, 0).numpy(), PIXELS[3])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_select_and_to_keep_entries_together(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    numbers = torch.arange(n)
    extra = {name: numbers.float().view(n, 1, 1).expand(n, 2, 3) for name in data.draw(st.sets(st.sampled_from(["ig", "logits", "new"])))}
    samples = Samples(np.arange(n), numbers.to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2), numbers, extra)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    positions = np.array(data.draw(st.permutations(range(n))))
    for rows, expected in ((mask, np.flatnonzero(mask)), (positions, positions)):
        chosen = samples.select(rows).to(torch.device("cpu"))
        assert chosen.ids.tolist() == chosen.labels.tolist() == chosen.pixels[:, 0, 0, 0].tolist() == expected.tolist()
        assert chosen.signals.keys() == extra.keys()
        assert all(values[:, 1, 2].tolist() == expected.tolist() for values in chosen.signals.values())


def test_images_are_decoded_one_at_a_time() -> None:
    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield Record(0, 0, encoded(PIXELS[0]), "x")

    decoded = iter(decode_all(endless(), None, False, "refuse", lambda record, why: None))
    assert np.array_equal(next(decoded)[1], PIXELS[0])
