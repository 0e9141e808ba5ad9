"""Fidelity and bytes of maps stored with less precision than float32."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from igkd.attribution import attributor, choose_engine
from igkd.base import provenance
from igkd.base.storage import write_json
from igkd.config.command_line import parse
from igkd.config.precompute import PrecomputeConfig
from igkd.images.open import open_images
from igkd.images.samples import load_samples
from igkd.networks.open import open_teacher

Maps = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure cosine, rank correlation and bytes of maps stored as float16 or as uint8 with a scale for each map."""

    teacher: str = "assets/cifar10-teacher"
    """Directory of a checkpoint."""
    images: str = "shapes"
    """The source; maps of its test split are computed."""
    count: int = 500
    """Number of images."""
    steps: int = 50
    """Integration steps."""
    out: str | None = None
    """JSON file for the figures."""


def ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Ranks within each row of (N, P); equal values get their mean rank, as for Spearman's coefficient."""
    out = np.empty(values.shape)
    for row, ranked in zip(values, out, strict=True):
        _, place, count = np.unique(row, return_inverse=True, return_counts=True)
        ranked[:] = (np.cumsum(count) - (count - 1) / 2)[place]
    return out


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine between the rows of two (N, P) arrays."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def parquet_bytes(flat: NDArray[np.generic]) -> int:
    """Size of (N, P) values as the store writes them."""
    tensor = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"ig": tensor}), buffer, compression="zstd")
    return buffer.getbuffer().nbytes


def formats(flat: Maps) -> dict[str, tuple[NDArray[np.generic], Maps]]:
    """Name of a format -> what is stored of maps (N, P), and the maps that are read back."""
    scale = flat.max(axis=1, keepdims=True) / 255
    linear = np.rint(flat / scale).astype(np.uint8)
    root = np.rint(np.sqrt(flat / scale / 255) * 255).astype(np.uint8)
    half = flat.astype(np.float16)
    return {
        "float32": (flat, flat),
        "float16": (half, half.astype(np.float32)),
        "uint8 + scale": (linear, linear * scale),
        "uint8 + scale, of the square root": (root, np.square(root / 255, dtype=np.float32) * scale * 255),
    }


def main() -> None:
    config, started = parse(Config, "python -m bench.precision"), provenance.now()
    model, _ = open_teacher(config.teacher)
    samples, _ = load_samples(open_images(config.images), "test", np.arange(config.count))
    engine = choose_engine(PrecomputeConfig.engine, "ig", gpu=False)
    attribute = attributor(model, "ig", engine, config.steps)
    batches = torch.arange(config.count).split(50)
    maps = torch.cat([attribute(samples.pixels[rows], samples.labels[rows], rows).ig for rows in batches])
    flat = maps.flatten(1).numpy()
    rows = {}
    for name, (stored, back) in formats(flat).items():
        cosine, rank = cosines(back, flat), cosines(centred(ranks(back)), centred(ranks(flat)))
        rows[name] = {
            "mean_cosine": cosine.mean(),
            "lowest_cosine": cosine.min(),
            "mean_rank_correlation": rank.mean(),
            "lowest_rank_correlation": rank.min(),
            "bytes": parquet_bytes(stored) / config.count,
        }
        rows[name]["ratio"] = rows[name]["bytes"] / rows["float32"]["bytes"]
        print(
            f"{name:34} cosine {cosine.mean():.7f} (lowest {cosine.min():.7f})  rank correlation {rank.mean():.6f} "
            f"(lowest {rank.min():.6f})  {rows[name]['bytes']:7.0f} bytes a map, {rows[name]['ratio']:.2f} x",
            flush=True,
        )
    if config.out:
        command = f"python -m bench.precision --images {config.images} --count {config.count}"
        write_json(Path(config.out), {"formats": rows} | provenance.provenance(command, 0, started))


if __name__ == "__main__":
    main()
