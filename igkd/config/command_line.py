"""Parses command lines into dataclasses of settings, and groups their options in --help."""

import dataclasses
import os
import sys
import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object

from igkd.base.errors import UserError
from igkd.config.optimisation import Optimisation

T = TypeVar("T")
SECTIONS = {
    "Data": (
        "images", "test_images", "teacher", "checkpoint", "store", "out", "split", "limit", "share", "image_size", "class_map", "classes",
        "bad_images", "init", "mean", "std",
    ),
    "Resource": (
        "workers", "min_workers", "compile", "ingest", "engine", "rows_per_file", "hours", "until", "runs_per_gpu", "price", "dry_run",
        "repair", "keep_epochs", "maps",
    ),
    "Training": (*(field.name for field in dataclasses.fields(Optimisation)), "normalise", "seed"),
}  # fmt: skip
"""The parts of --help and their settings; the first that has a setting counts. The others stand under the job's own name."""
HINTS = {None: "", (): "(default: none)"}
"""What stands after the help of settings with these defaults, in place of "(default: None)"."""


def parse(config: type[T], prog: str, **values: Any) -> T:
    """Parse this program's command line into a configuration.

    Args:
        config: a dataclass with a docstring after each field.
        prog: the program's name in its help, such as "python -m jobs.teacher".
        values: defaults that differ from the dataclass's.

    Raises:
        UserError: a value is empty, or one that the configuration refuses.
    """
    own = prog.split(".")[-1].split()[-1].capitalize()  # a field's name, which "import" cannot be
    sections: dict[str, list[Any]] = {"Data": [], own: [], "Training": [], "Resource": []}
    hints, texts = get_type_hints(config, include_extras=True), documentation(config)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # T is a dataclass
        default = values.get(field.name, field.default)
        shown = tyro.conf.arg(help=texts.get(field.name), metavar=metavar(hints[field.name]), help_behavior_hint=HINTS.get(default))
        sections[section(field.name, own)].append((field.name, Annotated[hints[field.name], shown], dataclasses.field(default=default)))
    titled = {title: dataclasses.make_dataclass(title, part, kw_only=True) for title, part in sections.items() if part}
    whole = dataclasses.make_dataclass(config.__name__, [*titled.items()])
    whole.__doc__ = config.__doc__
    given: Any = tyro.cli(whole, prog=prog, args=[*map(expanded, sys.argv[1:])], config=(tyro.conf.OmitArgPrefixes,))
    settings = {name: value for title in titled for name, value in vars(getattr(given, title)).items()}
    for name, value in settings.items():
        if any(isinstance(one, str) and not one.strip() for one in (value if isinstance(value, tuple) else (value,))):
            raise UserError(
                f"{name.replace('_', '-')} is empty, as by a variable of the shell that is not set: give a value, or leave it out"
            )
    return config(**settings)


def expanded(argument: str) -> str:
    """An argument of the command line; in --NAME=~/PATH the ~ is the home directory, as the shell makes it in --NAME ~/PATH."""
    name, separator, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if separator and name.startswith("--") and value.startswith("~") else argument


def metavar(kind: Any) -> str | None:
    """What stands for a setting's value in --help, if it may also be None; else None, for what tyro writes."""
    values = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) not in (Union, types.UnionType) or len(values) != 1:
        return None
    parts = [one for one in get_args(values[0]) if one is not Ellipsis] if get_origin(values[0]) is tuple else [values[0]]
    names = " ".join(one.__name__.upper() for one in parts)
    return f"[{names} ...]" if Ellipsis in get_args(values[0]) else names


def section(name: str, own: str) -> str:
    """The part of --help in which a setting stands."""
    return next((title for title, names in SECTIONS.items() if name in names), own)


def documentation(config: type) -> dict[str, str]:
    """The docstring after each field of a dataclass or of those it inherits from, as one paragraph."""
    found: dict[str, str] = {}
    for part in reversed(config.__mro__[:-1]):
        found |= {one.arg_name: " ".join((one.description or "").split()) for one in parse_from_object(part).params}
    return found
