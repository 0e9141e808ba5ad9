"""Finds the columns of a Parquet file that hold the pictures and the labels."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from igkd.base.errors import UserError
from igkd.base.storage import parse_json


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column's type is struct{bytes, path} made of Arrow's own types; extension types, such as Ray's, do not count."""
    fields = [(field.name, str(field.type)) for field in kind] if pa.types.is_struct(kind) else []
    types = dict(fields)
    plain = types.get("bytes") in ("binary", "large_binary") and types.get("path", "string") in ("string", "large_string")
    return plain and len(types) == len(fields)


def huggingface_columns(path: str, schema: pa.Schema, wanted: dict[str, str]) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column and class names (None if the file does not say) of a Hugging Face Parquet schema.

    Args:
        wanted: "label" or "image" -> the column that the user chose for it.

    Raises:
        UserError: there is no such column, or several columns are possible.
    """
    images = [f.name for f in schema if _is_image(f.type)]
    labels = [f.name for f in schema if pa.types.is_integer(f.type)]
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {column: _listed(features[column]["names"]) for column in labels if "names" in features.get(column, ())}
    except (KeyError, TypeError, ValueError, AttributeError):
        names = {}
    if not images or not labels:
        raise UserError(
            f"{path} is not in the Hugging Face layout: it needs a column of struct{{bytes, path}} and an integer label column, "
            f"it has {', '.join(f'{f.name}: {f.type}' for f in schema) or 'no columns'}"
        )
    image = _chosen(path, "image", images, images, wanted)
    label = _chosen(path, "label", labels, _likely_labels(schema, labels, names), wanted)
    for name in (image, label, f"{image}.bytes", f"{image}.path"):  # a column of the last two would be taken for a part of the pictures
        if schema.names.count(name) > (name in (image, label)):
            raise UserError(f"{path} has more than one column {name}: write it anew, with names that are all different")
    return image, label, names.get(label)


def _listed(names: Any) -> tuple[str, ...]:
    """Class names as a list, or as a map from number to name; raises ValueError if a number between is missing."""
    if isinstance(names, dict):
        numbers = sorted(names, key=int)
        if [int(number) for number in numbers] != list(range(len(numbers))):
            raise ValueError("not the numbers of classes")
        return tuple(str(names[number]) for number in numbers)
    return tuple(map(str, names))


def _likely_labels(schema: pa.Schema, labels: Sequence[str], names: Collection[str]) -> list[str]:
    """The columns that may hold the label; exactly one if it is clear which.

    Args:
        labels: the integer columns.
        names: the integer columns that have class names in the metadata.
    """
    alike = [f.name for f in schema if _words(f.name) & LABEL_WORDS and f.name not in names and not _is_image(f.type)]
    likely = [column for column in labels if column in names or column in alike]
    if len(likely) > 1 or (likely and (likely[0] in names or likely[0] in ("label", "labels"))):
        return likely
    others = [column for column in alike if column not in labels]  # for example labels stored as text
    if len(labels) == 1 and not others and (likely or not _words(labels[0]) & NO_LABEL_WORDS):
        return list(labels)
    return [*labels, *others] if len(labels) + len(others) > 1 else []


LABEL_WORDS = {"label", "labels", "class", "classes", "target", "targets", "category", "categories"}
"""Words that mark a column as labels when they occur in its name."""
NO_LABEL_WORDS = {"id", "ids", "idx", "index", "row", "number", "width", "height", "size", "year", "time", "timestamp", "date", "seed"}
"""Words that mark an integer column as something other than labels."""


def _words(column: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", column)}


def _chosen(path: str, kind: str, possible: Sequence[str], likely: Sequence[str], wanted: dict[str, str]) -> str:
    """The column that the user named, or the only one that is likely.

    Args:
        possible: the columns of the right type.
        likely: the columns that the user probably means.
    """
    told = "integer" if kind == "label" else "image"
    if kind in wanted:
        if wanted[kind] not in possible:
            raise UserError(f"{path} has no {told} column '{wanted[kind]}'; write ,{kind}=COLUMN with one of {', '.join(possible)}")
        return wanted[kind]
    if len(likely) == 1:
        return likely[0]
    columns = f"{told} columns" if set(likely) <= set(possible) else "columns"
    which = f"which of the {columns} {', '.join(likely)} is" if likely else f"is its only {told} column {possible[0]}"
    offered = next(column for column in (*likely, *possible) if column in possible)
    raise UserError(f"{path}: {which} the {kind}? say it behind the path, such as --images parquet:URI,{kind}={offered}")
