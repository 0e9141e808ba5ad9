"""Maps of networks of many kinds, against Captum at the same nodes: which engine computes them, and how near it comes.

Networks that are named have random weights, which say little about mirroring. For one with attention that has been trained:

    igkd teacher --images shapes:train=3000,test=1000 --network module:bench.networks:small_vit --optimizer adamw --learning-rate 0.002 \
        --epochs 40 --out out/vit
    IGKD_MODULES=bench.networks:small_vit python -m bench.networks --networks out/vit --images shapes:train=3000,test=1000 --pictures 100
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from igkd.attribution import attributor, find_engine
from igkd.base import provenance
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.evaluation.map_metrics import cosine
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks.network import Classifier
from igkd.networks.open import names_network, open_teacher

NETWORKS = {
    "torchvision:vgg11": "convolutions without batch norm",
    "torchvision:resnet18": "residual",
    "torchvision:densenet121": "dense connections",
    "torchvision:mobilenet_v2": "depthwise, ReLU6",
    "torchvision:mobilenet_v3_small": "depthwise, hardswish",
    "torchvision:efficientnet_b0": "depthwise, SiLU, squeeze and excitation",
    "torchvision:shufflenet_v2_x0_5": "shuffled channels",
    "torchvision:convnext_tiny": "layer norm, GELU",
    "torchvision:vit_b_16": "attention",
    "torchvision:swin_t": "attention in windows",
    "timm:resnet10t": "residual, average pooling",
    "timm:mobilenetv3_small_050": "depthwise, hardswish",
    "timm:mobilenetv4_conv_small": "depthwise",
    "timm:convnextv2_atto": "layer norm, global response norm",
    "timm:deit_tiny_patch16_224": "attention",
    "timm:mobilevitv2_050": "convolutions and linear attention",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compute maps of pictures by each network, by the engine that `fast` finds and by Captum."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks to compare: names, which get random weights, or directories of checkpoints."""
    images: str = "shapes"
    """Where the pictures are from."""
    pictures: int = 3
    """Number of pictures for each network."""
    steps: int = 4
    """Nodes of the quadrature."""
    out: str | None = None
    """JSON file for the figures."""


def small_vit(classes: int) -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of six layers for pictures of 32x32 pixels."""
    import timm

    network: nn.Module = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3, mlp_ratio=2, num_classes=classes
    )
    return network


small_vit.input_size, small_vit.mean, small_vit.std = 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # type: ignore[attr-defined]


def captums_maps(model: Classifier, pixels: Tensor, labels: Tensor, steps: int) -> Tensor:
    """The maps by Captum's midpoint rule, one picture at a time: float32 (B, H, W)."""
    captum = IntegratedGradients(model.from_normalised)
    maps = []
    for image, label in zip(model.normalise(pixels.float() / 255).split(1), labels.split(1), strict=True):
        found = captum.attribute(image, torch.zeros_like(image), label, n_steps=steps, method="riemann_middle", internal_batch_size=steps)
        maps.append(found.abs().sum(dim=1).detach())
    return torch.cat(maps)


def double(maps: Tensor) -> NDArray[np.float64]:
    """Maps as numpy arrays of float64."""
    return maps.numpy().astype(np.float64)


def measure(name: str, images: str, count: int, steps: int) -> dict[str, float | str]:
    """A network's engine, why that one, and its maps' cosine and largest relative difference to Captum's.

    `mirrored` is the mean cosine of the mirrored map to the map of the mirrored picture: stored maps are mirrored with the student's crop,
    which is exact only for a network that does not tell left from right.
    """
    model = open_teacher(f"{name},weights=none,seed=0" if names_network(f"{name},weights=none") else name)[0].eval()
    for weight in model.parameters():  # torchvision's ViT begins with a last layer of zeros, which has no map
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))
    shape = model.spec.image_shape
    samples = load_samples(open_images(images), "test", np.arange(count), shape, resize=True)[0]
    pixels, labels, ids = samples.pixels, samples.labels % len(model.spec.classes), torch.arange(count)
    engine, why = find_engine("fast", "ig", False, model, shape)
    attribute = attributor(model, "ig", engine, steps)
    ours, captums = attribute(pixels, labels, ids).ig, captums_maps(model, pixels, labels, steps)
    of_mirrored = attribute(pixels.flip(3), labels, ids).ig
    distance = (ours - captums).flatten(1).norm(dim=1) / captums.flatten(1).norm(dim=1)
    return {
        "network": name, "kind": NETWORKS.get(name, ""), "side": shape[0], "engine": engine, "why": why,
        "cosine": float(cosine(double(ours), double(captums)).min()), "difference": float(distance.max()),
        "mirrored": float(cosine(double(ours.flip(2)), double(of_mirrored)).mean()),
    }  # fmt: skip


def main() -> None:
    config, started = parse(Config, "python -m bench.networks"), provenance.now()
    rows = []
    print(f"{'network':30} {'engine':14} {'cosine':>9} {'difference':>11} {'mirrored':>9}  why")
    for name in config.networks:
        row = measure(name, config.images, config.pictures, config.steps)
        rows.append(row)
        figures = f"{row['cosine']:9.6f} {row['difference']:11.1e} {row['mirrored']:9.4f}"
        print(f"{name:30} {row['engine']:14} {figures}  {row['why']}", flush=True)
    if config.out:
        write_json(Path(config.out), {"rows": rows} | provenance.provenance(provenance.command(), 0, started))


if __name__ == "__main__":
    main()
