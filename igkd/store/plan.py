"""What a store is made of: its plan, its columns, the names of its files."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igkd.attribution import Engine, Method
from igkd.models import MAX_SIDE
from igkd.pictures import Interpolation, Scaling
from igkd.typed import short, typed

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store is made of and made from: the identity of every row in it."""

    images: str
    """The source as the user named it."""
    images_fingerprint: str
    split: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    resize: bool
    """Whether pictures were scaled and cropped to that shape."""
    short_side: int = 0
    """How they were, as `pictures.Scaling` has it: the teacher's own way."""
    interpolation: Interpolation = "bicubic"
    bad_images: str
    """"refuse" or "skip"."""
    teacher: str
    """sha256 of the teacher's weights."""
    width: float
    """Of the students' network, which is the teacher's."""
    stride: int
    """Of its first layer, likewise."""
    steps: int
    """Nodes of the quadrature."""
    method: Method
    quadrature: str
    """The rule of the path integral, by Captum's name."""
    engine: Engine
    target: str = "true label"
    baseline: str = "0 in normalised space"
    precision: str
    """dtype of maps and attention: float16 or float32."""
    attention_layer: int | None
    """Index into the teacher's `features`; None: a teacher of another kind than the students, no attention is kept."""
    attention_shape: tuple[int, ...]
    has_mask: bool
    ids_sha256: str
    """Hash of the int64 ids asked for, in order."""
    rows: int
    """Number of these ids."""
    rows_per_file: int
    version: int = VERSION

    @property
    def parts(self) -> int:
        """Number of Parquet files."""
        return -(-self.rows // self.rows_per_file)

    @property
    def scaling(self) -> Scaling:
        """How pictures of another size were made `image_shape`, where `resize` is set."""
        return Scaling(self.short_side, self.interpolation)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """What `to_json` gave; raises TypeError for settings missing, unknown or of another type, ValueError for impossible ones."""
        plan = typed(cls, data)
        sizes = (*plan.image_shape, *plan.attention_shape, plan.short_side)
        if plan.rows < 0 or plan.rows_per_file < 1 or len(plan.attention_shape) != 2 or not all(0 <= side <= MAX_SIDE for side in sizes):
            raise ValueError("its sizes are impossible")
        if plan.precision not in ("float16", "float32"):
            raise ValueError(f"precision cannot be {short(plan.precision)}")
        return plan

    def schema(self) -> pa.Schema:
        """Arrow schema of every part."""
        real = pa.type_for_alias(self.precision)
        fields = [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("image_sha", pa.binary(16), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("validation", pa.bool_(), nullable=False),
            pa.field("ig", pa.fixed_shape_tensor(real, self.image_shape), nullable=False),
            pa.field("ig_delta", pa.float32(), nullable=False),
            pa.field("logits", pa.fixed_shape_tensor(pa.float32(), (len(self.classes),)), nullable=False),
        ]
        if self.attention_layer is not None:
            fields.append(pa.field("attention", pa.fixed_shape_tensor(real, self.attention_shape), nullable=False))
        if self.has_mask:
            fields.append(pa.field("mask", pa.fixed_shape_tensor(pa.uint8(), self.image_shape), nullable=False))
        return pa.schema(fields)


def ids_hash(ids: NDArray[np.int64]) -> str:
    """sha256 of int64 ids as little-endian bytes."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def part_name(part: int) -> str:
    """File name of a part."""
    return f"part-{part:05d}.parquet"
