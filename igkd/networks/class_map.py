"""The file of --class-map: which class of a teacher each class of the pictures is."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.base.storage import read_json
from igkd.images.class_names import among

MAX_BYTES = 16 << 20
"""Largest file; one of 100,000 classes has some 5 MB."""


def read_class_map(path: Path | str) -> dict[str, str | int]:
    """The name or number (from 0) of a teacher's class by class of the pictures.

    Args:
        path: JSON, {"cat": "tabby", "dog": 207}; or CSV without a header, a line `cat,tabby` or `dog,207` for each class.

    Raises:
        UserError: there is no such file, or it is no such map.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UserError(f"--class-map {path}: there is no such file, or it has more than {MAX_BYTES >> 20} MiB")
    if path.suffix == ".json":
        value: Any = read_json(path)
        pairs = list(value.items()) if isinstance(value, dict) else []
    else:
        try:
            lines = [line for line in csv.reader(io.StringIO(path.read_text("utf-8-sig"))) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"--class-map {path} is no CSV of text in UTF-8: {error}") from None
        pairs = [(line[0].strip(), line[1].strip()) for line in lines if len(line) == 2]
        if len(pairs) < len(lines):
            raise UserError(
                f"--class-map {path}: a line must be PICTURES' CLASS,TEACHER'S CLASS; put a name with a comma into double quotes"
            )
    wrong = [key for key, one in pairs if not (isinstance(one, str) or type(one) is int)]
    if wrong or not pairs or len(dict(pairs)) < len(pairs):
        why = f"{short(wrong[0])} has no name or number" if wrong else "it is empty" if not pairs else "a class is there twice"
        raise UserError(f'--class-map {path} is no map of classes ({why}); one is {{"cat": "tabby", "dog": 207}}')
    return dict(pairs)


def mapped(path: Path | str, known: tuple[str, ...], classes: tuple[str, ...], name: str, others: str) -> NDArray[np.int64]:
    """A teacher's label for each class of the pictures by the file of --class-map, int64 (len(classes),).

    Args:
        known: the teacher's classes.
        classes: the pictures' classes.
        name, others: the teacher and the pictures, for messages.

    Raises:
        UserError: the file is no such map, lacks a class, or names one that the teacher does not know; or two classes are one.
    """
    found = read_class_map(path)
    if missing := [one for one in classes if one not in found]:
        raise UserError(f"--class-map {path} lacks {len(missing)} of the classes of {others}: {', '.join(missing[:4])}")
    wanted = [found[one] for one in classes]
    texts = [str(one) for one in wanted]
    names = [
        text if isinstance(one, str) and (text in known or not text.isdecimal()) else None for one, text in zip(wanted, texts, strict=True)
    ]
    numbers = []
    for one, text, given in zip(names, texts, classes, strict=True):
        if one is not None:
            place = among(known, [one], name)
            if place is None:
                raise UserError(f"--class-map {path}: {name} knows no class {short(text)}, which {given} is to be")
            numbers.append(int(place[0]))
        elif text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) < len(known):
            numbers.append(int(text))
        else:
            raise UserError(f"--class-map {path}: {given} is to be class {short(text)} of {name}, which has 0 to {len(known) - 1}")
    for label, number in enumerate(numbers):
        if number in numbers[:label]:
            raise UserError(
                f"--class-map {path}: {classes[numbers.index(number)]} and {classes[label]} are one class of {name}; leave one out"
            )
    return np.array(numbers, dtype=np.int64)
