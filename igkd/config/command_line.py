"""Parses command lines into dataclasses of settings."""

from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(config: type[T], prog: str) -> T:
    """Parse this program's command line into a configuration."""
    return tyro.cli(config, prog=prog)
