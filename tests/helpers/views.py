"""Students that learn from the logits of crops."""

from typing import Any

from igkd.config.distill import DistillConfig


def view_student(uri: str, **changes: Any) -> DistillConfig:
    """The settings of a short run by kd on a store; in float32, since tests compare its losses on processors with and without bfloat16."""
    usual = {"store": uri, "out": "nowhere", "arm": "kd", "learning_rate": 0.01, "epochs": 2, "batch_size": 8, "precision": "float32"}
    return DistillConfig(**usual | changes)
