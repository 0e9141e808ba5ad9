"""From dataclasses of settings to command lines."""

from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(config: type[T], prog: str) -> T:
    """A configuration from the command line."""
    return tyro.cli(config, prog=prog)
