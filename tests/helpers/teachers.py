"""Short trainings of a teacher."""

from pathlib import Path
from typing import Any

from igkd.config.teacher import TeacherConfig
from tests.helpers.paths import IMAGES


def configure(out: Path, **changes: Any) -> TeacherConfig:
    """The settings of a training of seconds."""
    settings: dict[str, Any] = {
        "images": IMAGES,
        "epochs": 2,
        "network": "mobilenet:width=0.35",
        "batch_size": 16,
        "learning_rate": 0.02,
    } | changes
    return TeacherConfig(out=str(out), **settings)


def weights(out: Path) -> bytes:
    """The bytes of a checkpoint's weights."""
    return (out / "model.safetensors").read_bytes()
