"""Networks of timm, against timm itself."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from igkd.base.errors import UserError
from igkd.images.codec import Scaling, decode
from igkd.networks.families import build_named, canonical_name, student_name
from igkd.networks.network import NetworkSpec, build, parameter_count
from igkd.networks.open import open_teacher
from igkd.networks.timm import preparation

SMALL = "mobilenetv3_small_050"


def test_a_network_is_the_one_that_timm_makes() -> None:
    torch.manual_seed(5)
    theirs = timm.create_model(SMALL, num_classes=4).eval()
    ours = build(NetworkSpec(name=f"timm:{SMALL}", classes=tuple("abcd"), image_shape=(64, 64)), 5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.from_normalised(x), theirs(x)) and parameter_count(ours) == parameter_count(theirs)


@pytest.mark.parametrize("name", [SMALL, "resnet10t", "efficientnet_b1", "vit_tiny_patch16_224", "resnet18.a1_in1k", "lcnet_050"])
def test_pictures_are_prepared_as_by_timms_own_transform(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)).resize((520, 360))
    picture.save(tmp_path / "p.png")
    how = preparation(name)
    assert how.image_shape is not None and how.mean is not None and how.std is not None
    found = decode((tmp_path / "p.png").read_bytes(), how.image_shape, Scaling(how.short_side, how.interpolation))
    expected = transform(picture)
    normalised = (torch.tensor(found).permute(2, 0, 1) / 255 - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=1e-5)


def test_a_teacher_of_timms_with_a_file_knows_imagenets_names(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(SMALL).eval()
    torch.save({"state_dict_ema": theirs.state_dict()}, tmp_path / "w.pth")
    model, _ = open_teacher(f"timm:{SMALL},weights={tmp_path}/w.pth")
    assert model.spec.classes[0] == "tench" and len(model.spec.classes) == 1000 and model.spec.short_side == 256
    with torch.no_grad():
        x = torch.rand(2, 3, 224, 224)
        assert torch.equal(model.from_normalised(x), theirs(x))


@pytest.mark.parametrize(
    "name", ["timm:nothing", "timm:", "timm:hf-hub:somebody/net", "timm:local-dir:/tmp", "timm:../x", "timm:resnet18,"]
)
def test_names_that_timm_does_not_have(name: str) -> None:
    with pytest.raises(UserError, match="timm has no network"):
        canonical_name(name)


def test_default_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for text in (f"timm:{SMALL}", f"timm:{SMALL},weights=default"):
        with pytest.raises(UserError, match=r"weights of timm:mobilenetv3_small_050 cannot be had .*\$HF_HOME.*or give weights=FILE"):
            open_teacher(text)


def test_a_student_of_timms() -> None:
    assert student_name(f"timm:{SMALL}", "mobilenet", (32, 32)) == f"timm:{SMALL}"
    assert build_named("timm:resnet10t", 3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
