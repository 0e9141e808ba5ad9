"""What a store is made of: its plans, its columns, the names of its files."""

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igkd.base.choices import Engine, Forwards, Method
from igkd.base.schema import short, typed
from igkd.images.codec import Interpolation, Scaling
from igkd.networks.network import MAX_SIDE
from igkd.store.signals import arrow_fields

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Layer(abc.ABC):
    """Parquet files of a store, one for each part of its images, and the plan that says what is in them: the identity of every row.

    The first layer, `Plan`, is the store itself. Others add columns to its rows; they are files of their own, so that adding one leaves
    the rest as it is, byte for byte.
    """

    kind: ClassVar[str]
    """Begins the names of its files."""
    plan_name: ClassVar[str]
    manifest_name: ClassVar[str]

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

    @classmethod
    def part_name(cls, part: int) -> str:
        """File name of a part."""
        return f"{cls.kind}-{part:05d}.parquet"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave; raises TypeError for settings missing, unknown or of another type, ValueError for impossible ones."""
        plan = typed(cls, data)
        if plan.rows < 0 or plan.rows_per_file < 1:
            raise ValueError("its sizes are impossible")
        return plan

    @abc.abstractmethod
    def schema(self) -> pa.Schema:
        """Arrow schema of every part."""


@dataclass(frozen=True, kw_only=True)
class Plan(Layer):
    """The rows of a store: a picture, its label, and what the teacher makes of it."""

    kind = "part"
    plan_name = "plan.json"
    manifest_name = "manifest.json"

    images: str
    """The source as the user named it."""
    images_fingerprint: str
    split: str
    classes: tuple[str, ...]
    """In the teacher's order, which the logits have; labels number them."""
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
    teacher_parameters: int
    """How many it has: what students are compared with where it is not at hand."""
    teacher_network: str
    """The name of its network: what students of the same family leave open is as it has it."""
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
    attention_layer: str | None
    """Path of the layer in the teacher whose attention is kept; None: none corresponds to one of the students."""
    attention_shape: tuple[int, ...]
    has_mask: bool

    @property
    def scaling(self) -> Scaling:
        """How pictures of another size were made `image_shape`, where `resize` is set."""
        return Scaling(self.short_side, self.interpolation)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        plan = super().from_json(data)
        sizes = (*plan.image_shape, *plan.attention_shape, plan.short_side)
        if len(plan.attention_shape) != 2 or not all(0 <= side <= MAX_SIDE for side in sizes):
            raise ValueError("its sizes are impossible")
        if plan.precision not in ("float16", "float32"):
            raise ValueError(f"precision cannot be {short(plan.precision)}")
        return plan

    @property
    def identity(self) -> str:
        """sha256 of what a store is, wherever its images are."""
        return hashlib.sha256(json.dumps(self.to_json() | {"images": ""}, sort_keys=True).encode()).hexdigest()

    def schema(self) -> pa.Schema:
        """Arrow schema of every part."""
        fields = [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("image_sha", pa.binary(16), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("validation", pa.bool_(), nullable=False),
            *arrow_fields(self),
        ]
        return pa.schema(fields)


@dataclass(frozen=True, kw_only=True)
class ViewsPlan(Layer):
    """The teacher's logits of crops of the images: of all that a padding allows, each mirrored, too, or of some random ones."""

    kind = "views"
    plan_name = "views-plan.json"
    manifest_name = "views-manifest.json"

    store: str
    """`Plan.identity` of the store whose images and teacher these are."""
    teacher: str
    """sha256 of the teacher's weights."""
    classes: int
    padding: int
    """Pixels of crop on each side, at most."""
    count: int | None
    """Crops of each image; None: all of them."""
    seed: int
    """From which, with an image's id, the places of `count` crops follow."""
    engine: Forwards
    """What computes the forward passes, and whether in float32 or bfloat16."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        plan = super().from_json(data)
        if not (0 <= plan.padding <= MAX_SIDE and plan.classes >= 1 and (plan.count is None or plan.count >= 1)):
            raise ValueError("its sizes are impossible")
        return plan

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's logits: (2p + 1, 2p + 1, 2, classes) for down, right, mirrored; or (count, classes)."""
        side = 2 * self.padding + 1
        return (side, side, 2, self.classes) if self.count is None else (self.count, self.classes)

    @property
    def crops(self) -> int:
        """Crops of each image."""
        return 2 * (2 * self.padding + 1) ** 2 if self.count is None else self.count

    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("image_id", pa.int64(), nullable=False),
                pa.field("views", pa.fixed_shape_tensor(pa.float16(), self.shape), nullable=False),
            ]
        )


def ids_hash(ids: NDArray[np.int64]) -> str:
    """sha256 of int64 ids as little-endian bytes."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def part_name(part: int) -> str:
    """File name of a part of the store itself."""
    return Plan.part_name(part)
