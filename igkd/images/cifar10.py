"""CIFAR-10, in the files that torchvision downloads."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igkd.base.choices import Split
from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.images.codec import encode_png
from igkd.images.source import ImageSource, Record, fingerprint_of


@dataclass(frozen=True)
class Cifar10(ImageSource):
    """CIFAR-10 as torchvision downloads it, into $IGKD_CACHE (by default ~/.cache/igkd)."""

    classes: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __str__(self) -> str:
        return "cifar10"

    def _load(self, split: Split) -> Any:
        from torchvision.datasets import CIFAR10

        root = Path(absolute(os.environ.get("IGKD_CACHE", "~/.cache/igkd")))
        patience = socket.getdefaulttimeout()
        try:
            with contextlib.suppress(RuntimeError):  # the files are missing or incomplete
                return CIFAR10(str(root), train=split == "train")
            socket.setdefaulttimeout(60)  # torchvision sets no timeout: a network that drops packets would block for ever
            return CIFAR10(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded to {root} ({type(error).__name__}: {error}); without a network, use a local copy with "
                "--images parquet:DIR (files train-*.parquet and test-*.parquet in Hugging Face layout), "
                f"or unpack cifar-10-python.tar.gz into {root}"
            ) from None
        finally:
            socket.setdefaulttimeout(patience)

    def labels(self, split: Split) -> NDArray[np.int64]:
        return np.asarray(self._load(split).targets, dtype=np.int64)

    def read(self, split: Split, ids: Sequence[int]) -> Iterator[Record]:
        data = self._load(split)
        for i in ids:
            yield Record(int(i), int(data.targets[i]), encode_png(data.data[i]), f"cifar10 {split} {i}")

    def fingerprint(self, split: Split) -> str:
        return fingerprint_of("cifar10", split)
