"""The engines that compute logits of crops, and which of them is chosen."""

import pytest
import torch

from igkd.base.choices import Precision
from igkd.base.errors import UserError
from igkd.networks import checkpoint
from igkd.networks.network import Classifier, NetworkSpec, build
from igkd.store import forwards


def test_openvino_says_what_torch_says(teacher: str) -> None:
    pytest.importorskip("openvino")
    model = checkpoint.load(teacher)
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one = forwards.answering(checkpoint.load(teacher), "openvino")(pixels)
    assert torch.allclose(one, forwards.answering(model, "torch")(pixels), atol=1e-4)
    again = forwards.answering(checkpoint.load(teacher), "openvino")
    assert torch.equal(torch.cat([again(part) for part in pixels.split(64)]), one), "however the images are shared out"
    assert forwards.choose_forwards(model, pixels, gpu=True) == "torch"
    assert forwards.choose_forwards(model, pixels, gpu=False).startswith("openvino")


@pytest.mark.parametrize("name", ["mobilenet", "lean:2:8x1,16x1"])
def test_any_network_of_ours_answers_by_openvino(name: str) -> None:
    """Also those whose layers are others while there are gradients."""
    pytest.importorskip("openvino")
    spec = NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name=name)
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_torch, by_openvino = (forwards.answering(build(spec, 1).eval(), engine)(pixels) for engine in ("torch", "openvino"))
    assert torch.allclose(by_torch, by_openvino, atol=1e-4) and by_torch.shape == (9, 3)


def test_a_network_that_openvino_does_not_know_answers_by_torch() -> None:
    class Strange(Classifier):
        def from_normalised(self, x: torch.Tensor) -> torch.Tensor:
            return super().from_normalised(torch.fft.fft2(x).real.contiguous())

    model = Strange(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="lean:2:8x1")).eval()
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    engine = forwards.choose_forwards(model, pixels, gpu=False)
    assert forwards.close_enough(forwards.answering(model, "torch")(pixels), forwards.answering(model, engine)(pixels))


def test_bfloat16_has_to_be_close() -> None:
    exact = torch.zeros(2000, 10)
    exact[:, 0] = 1
    assert forwards.close_enough(exact, exact + 0.099)
    far = exact.clone()
    far[7, 3] += 0.11
    assert not forwards.close_enough(exact, far)
    exact[:3, 1] = 0.99
    turned = exact.clone()
    turned[:3, 1] = 1.01
    assert not forwards.close_enough(exact, turned)
    assert forwards.close_enough(exact[2:], turned[2:])


def test_the_distance_by_hand() -> None:
    exact = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    rounded = torch.tensor([[1.0, 0.0], [0.0, 2.25], [0.0, 1.0]])
    assert forwards.distance(exact, rounded) == (3.0, pytest.approx(1 / 3))
    assert forwards.distance(exact[:0], exact[:0]) == (0.0, 0.0)


@pytest.fixture
def confident() -> tuple[Classifier, torch.Tensor]:
    """A network of so large logits that bfloat16 moves them by more than is allowed, and pixels."""
    pytest.importorskip("openvino")
    from igkd.attribution.openvino import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this processor has no instructions for bfloat16")
    model = build(NetworkSpec(classes=("a", "b", "c"), image_shape=(16, 16), name="lean:2:8x1,16x1"), 1).eval()
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    factor = 500 / forwards.answering(model, "torch")(pixels).abs().max()
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:  # the classifier's
            parameter.mul_(factor)
    return model, pixels


def test_bfloat16_is_taken_where_it_is_close_or_asked_for(confident: tuple[Classifier, torch.Tensor]) -> None:
    model, pixels = confident
    calm = build(model.spec, 1).eval()
    said: list[str] = []
    chosen = [
        forwards.choose_forwards(network, pixels, gpu=False, precision=precision, say=said.append)
        for network in (calm, model)
        for precision in ("auto", "float32", "bfloat16")
    ]
    assert chosen == ["openvino-bf16", "openvino", "openvino-bf16", "openvino", "openvino", "openvino-bf16"]
    assert len(said) == 2 and "in float32, since bfloat16 changes a logit of 64 images by up to" in said[0]
    assert "--views-precision bfloat16" in said[0] and "as asked" in said[1]
    exact, rounded = (forwards.answering(model, engine)(pixels) for engine in ("openvino", "openvino-bf16"))
    assert f"by up to {(exact - rounded).abs().max().item():.2f} " in said[0]


def test_bfloat16_that_is_asked_for_and_impossible_is_an_error() -> None:
    with pytest.raises(UserError, match="on GPUs, and there in float32"):
        forwards.check_precision("bfloat16", gpu=True)
    for precision in ("auto", "float32"):
        forwards.check_precision(precision, gpu=True)


@pytest.mark.parametrize(
    ("precision", "engine", "fits"),
    [
        ("auto", "torch", True),
        ("auto", "openvino-bf16", True),
        ("float32", "torch", True),
        ("float32", "openvino", True),
        ("float32", "openvino-bf16", False),
        ("bfloat16", "openvino-bf16", True),
        ("bfloat16", "openvino", False),
    ],
)
def test_views_are_continued_in_the_precision_they_were_begun_in(precision: Precision, engine: forwards.Forwards, fits: bool) -> None:
    if fits:
        forwards.check_begun(precision, engine)
    else:
        with pytest.raises(UserError, match=f"views are in {'bfloat16' if engine == 'openvino-bf16' else 'float32'}"):
            forwards.check_begun(precision, engine)
