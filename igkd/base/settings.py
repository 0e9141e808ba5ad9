"""What kind of setting a field of a configuration is. Each field says so once, where it is declared: `field(default=1, metadata=SPEED)`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["learning", "run", "place", "speed"]

RUN: Mapping[str, Kind] = {"kind": "run"}
"""Which of a sweep's runs it is: arm, network, seed and the like."""
PLACE: Mapping[str, Kind] = {"kind": "place"}
"""Where something lies. What matters of it is in a run's fingerprints."""
SPEED: Mapping[str, Kind] = {"kind": "speed"}
"""How fast a run is, how long it may take, how it is judged: this may differ when it goes on."""


def kinds(config: Any) -> dict[str, Kind]:
    """The kind of each field, by name; a field without a mark is part of how a run learns.

    Args:
        config: a dataclass, or an instance of one.
    """
    return {field.name: field.metadata.get("kind", "learning") for field in dataclasses.fields(config)}
