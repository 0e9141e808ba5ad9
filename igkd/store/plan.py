"""The plans of a store and of its layers: identity, Arrow schema and file names."""

import abc
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igkd.attribution.homogeneity import ONE_PASS
from igkd.base.choices import Engine, Forwards, Method
from igkd.base.schema import short, typed
from igkd.images.codec import Interpolation, Scaling
from igkd.networks.preparation import MAX_SIDE
from igkd.store.signals import arrow_fields
from igkd.store.top_logits import REST, bytes_of_crop

VERSION = 4

PLACES = ("images", "teacher_place")
"""Entries of a plan that say where something is. It may move; whether it is the same is decided by its hash."""


@dataclass(frozen=True, kw_only=True)
class Layer(abc.ABC):
    """A plan of some Parquet files of a store, one file for each part of its images. The plan determines the files' content.

    The first layer, `Plan`, is the store itself. Other layers add columns to its rows in separate files, so that adding one changes no
    existing file.
    """

    kind: ClassVar[str]
    """Start of the names of the layer's files."""
    plan_name: ClassVar[str]
    manifest_name: ClassVar[str]

    ids_sha256: str
    """`ids_hash` of the ids of the planned images, in order."""
    rows: int
    """Number of planned images."""
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
        """The inverse of `to_json`; raises TypeError for fields missing, unknown or of the wrong type, ValueError for invalid values."""
        plan = typed(cls, data)
        if plan.rows < 0 or plan.rows_per_file < 1:
            raise ValueError("its sizes are impossible")
        return plan

    @abc.abstractmethod
    def schema(self) -> pa.Schema:
        """Arrow schema of every part."""


@dataclass(frozen=True, kw_only=True)
class Plan(Layer):
    """The plan of a store, whose rows have a picture, its label and the teacher's signals."""

    kind = "part"
    plan_name = "plan.json"
    manifest_name = "manifest.json"

    images: str
    """The source as the user named it."""
    images_fingerprint: str
    split: str
    classes: tuple[str, ...]
    """Class names in the order of the teacher's logits; labels are indices into this list."""
    image_shape: tuple[int, int]
    resize: bool
    """Whether pictures were scaled and cropped to `image_shape`."""
    short_side: int = 0
    """With `interpolation`, how pictures were scaled (see `codec.Scaling`): the teacher's own way."""
    interpolation: Interpolation = "bicubic"
    bad_images: str
    """"refuse" or "skip"."""
    teacher: str
    """sha256 of the teacher's weights."""
    teacher_place: str = ""
    """The teacher as the user named it, for commands that look at teacher and student; it may have moved."""
    teacher_parameters: int
    """The teacher's number of parameters, so that students can be compared with it when it is not available."""
    teacher_network: str
    """The name of the teacher's network; a student's name may leave open what it shares with the teacher."""
    steps: int
    """Nodes of the quadrature of integrated gradients, as asked for; see `nodes`."""
    method: Method
    quadrature: str
    """Captum's name of the quadrature rule for the path integral, or "one pass" for a homogeneous teacher's exact maps."""
    engine: Engine
    target: str = "true label"
    baseline: str = "0 in normalised space"
    precision: str
    """dtype of maps and attention: float16 or float32."""
    attention_layer: str | None
    """Path of the layer in the teacher whose attention is kept; None: none corresponds to one of the students."""
    attention_shape: tuple[int, ...]
    gradcam_layer: str | None = None
    """Path of the teacher's layer whose Grad-CAM is kept; None: none was asked for."""
    gradcam_shape: tuple[int, ...] = (0, 0)
    has_mask: bool

    @property
    def scaling(self) -> Scaling:
        """How pictures of another size were scaled to `image_shape`, if `resize` is set."""
        return Scaling(self.short_side, self.interpolation)

    @property
    def nodes(self) -> int:
        """Nodes at which gradients are computed for each map: 1 if that is exact."""
        return 1 if self.quadrature == ONE_PASS else self.steps

    @property
    def path(self) -> str:
        """How the path of each map is integrated, in words: "50 steps" or "one pass"."""
        return ONE_PASS if self.quadrature == ONE_PASS else f"{self.steps} steps"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        plan = super().from_json(data)
        sizes = (*plan.image_shape, *plan.attention_shape, *plan.gradcam_shape, plan.short_side)
        for layer in (plan.attention_layer, plan.gradcam_layer):
            if layer is not None and not re.fullmatch(r"\w{1,80}(?:\.\w{1,80}){0,20}", layer):
                raise ValueError(f"a layer cannot be {short(layer)}")
        if {len(plan.attention_shape), len(plan.gradcam_shape)} != {2} or not all(0 <= side <= MAX_SIDE for side in sizes):
            raise ValueError("its sizes are impossible")
        if plan.precision not in ("float16", "float32"):
            raise ValueError(f"precision cannot be {short(plan.precision)}")
        return plan

    @property
    def identity(self) -> str:
        """sha256 of the plan without the places of its images and its teacher."""
        return hashlib.sha256(json.dumps(self.to_json() | dict.fromkeys(PLACES, ""), sort_keys=True).encode()).hexdigest()

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
    """The plan of the teacher's logits of crops: of all padded crops that a padding allows, or of some random crops, padded or resized."""

    kind = "views"
    plan_name = "views-plan.json"
    manifest_name = "views-manifest.json"

    store: str
    """`Plan.identity` of the store that the views belong to."""
    teacher: str
    """sha256 of the teacher's weights."""
    classes: int
    padding: int
    """Largest shift of a padded crop in each direction, in pixels; 0 for resized crops."""
    count: int | None
    """Number of random crops of each image; None for all padded crops."""
    resized: bool = False
    """Whether these are resized crops."""
    top: int | None = None
    """Number of largest logits that are kept of each crop, with the mass of the rest (`store.top_logits`); None keeps all."""
    seed: int
    """Seed from which, with an image's id, its random crops are computed."""
    engine: Forwards
    """The engine of the teacher's forward passes, which says their precision, too."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        plan = super().from_json(data)
        if not (0 <= plan.padding <= MAX_SIDE and plan.classes >= 1 and (not plan.resized if plan.count is None else plan.count >= 1)):
            raise ValueError("its sizes are impossible")
        if plan.top is not None and not 1 <= plan.top < plan.classes:
            raise ValueError("its number of largest logits is impossible")
        return plan

    def to_json(self) -> dict[str, Any]:
        """Like `Layer.to_json`, without `resized` and `top` where they are not used: so plans without them stay what they always were."""
        return {name: value for name, value in super().to_json().items() if name not in ("resized", "top") or value}

    @property
    def places(self) -> tuple[int, ...]:
        """Axes of one image's crops: (2p + 1, 2p + 1, 2) for dy, dx, flip; or (count,)."""
        side = 2 * self.padding + 1
        return (side, side, 2) if self.count is None else (self.count,)

    @property
    def values(self) -> int:
        """Number of float16 that are kept of one crop: its logits, or the largest of them and what says the mass of the rest."""
        return self.classes if self.top is None else self.top + REST

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's views, in memory and, since logits hardly compress, about as many in a file."""
        return self.crops * bytes_of_crop(self.classes, self.top)

    @property
    def crops(self) -> int:
        """Number of crops of each image."""
        return 2 * (2 * self.padding + 1) ** 2 if self.count is None else self.count

    def schema(self) -> pa.Schema:
        columns = {"views": pa.fixed_shape_tensor(pa.float16(), (*self.places, self.values))}
        if self.top is not None:
            columns["view_classes"] = pa.fixed_shape_tensor(pa.int32(), (*self.places, self.top))
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in {"image_id": pa.int64(), **columns}.items()])


def ids_hash(ids: NDArray[np.int64]) -> str:
    """sha256 of int64 ids as little-endian bytes."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def part_name(part: int) -> str:
    """File name of a part of the store itself."""
    return Plan.part_name(part)
