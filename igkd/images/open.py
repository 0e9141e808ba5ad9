"""Opens the image source that `--images` names."""

import sys
from pathlib import Path

from igkd.base.choices import Split
from igkd.base.errors import UserError, printable
from igkd.base.storage_errors import explain
from igkd.images import folder_scan
from igkd.images.cifar10 import Cifar10
from igkd.images.folder import FolderImages
from igkd.images.hub import open_hub
from igkd.images.parquet import ParquetImages
from igkd.images.shapes import Shapes
from igkd.images.source import NAMED, ImageSource, without_pictures

NAME = 24
"""Number of letters of a class's name in a line."""


def open_images(spec: str) -> ImageSource:
    """Open a source by its `--images` argument.

    Raises:
        UserError: the argument is malformed, or there are no images at that place.
    """
    if spec in _AHEAD:
        return _AHEAD.pop(spec)
    kind, _, rest = spec.partition(":")
    if kind == "cifar10" and not rest:
        return Cifar10()
    if kind == "shapes":
        return Shapes.parse(rest)
    if kind == "parquet" and rest:
        return ParquetImages.open(rest)
    if kind == "folder" and rest:
        return FolderImages.open(rest)
    if kind == "hf" and rest:
        return open_hub(rest)
    raise UserError(f"'{spec}' names no images; use cifar10, shapes, parquet:URI, folder:PATH or hf:OWNER/NAME")


def open_ahead(spec: str) -> ImageSource:
    """As `open_images`, whose next call in this process gets the same source: to list a million pictures twice takes twice as long."""
    _AHEAD[spec] = open_images(spec)
    return _AHEAD[spec]


def tell(source: ImageSource) -> None:
    """Print a source's notes to standard error, each once a process. For programs that a user starts, not for their workers."""
    for note in source.notes:
        if note not in _TOLD:
            _TOLD.add(note)
            print(printable(f"note: {' '.join(note.splitlines())}"), file=sys.stderr, flush=True)


def found_line(source: ImageSource, split: Split = "train") -> str:
    """What a source holds, as a line."""
    labels, classes = source.checked_labels(split), source.classes
    names = ", ".join(name[:NAME] for name in classes[:NAMED]) + (", ..." if len(classes) > NAMED else "")
    missing = without_pictures(labels, classes)
    return printable(f"{len(labels):,} {split} pictures of {len(classes):,} classes ({names}){missing and missing + ','} in {source}")


_TOLD: set[str] = set()
_AHEAD: dict[str, ImageSource] = {}


def loose_pictures(path: Path) -> "FolderImages":
    """Unlabelled pictures (each gets label -1): one picture file, or those of a directory in the order of their names.

    Raises:
        UserError: the path does not exist, it holds no picture, or a link in it is not allowed.
    """
    try:
        if path.is_file():
            return FolderImages(str(path.parent), (), {"": ((path.name, -1, path.stat().st_size),)})
        opened = folder_scan.Opened(str(path))
        top = folder_scan.Directory(opened)
        if not top.pictures:
            raise UserError(f"{path} holds no pictures; a directory that has one for each class is named folder:{path}")
        opened.left_out.update(f"{name}/" for name in top.directories)
        notes = tuple(f"{path}: {note}" for note in folder_scan.left_out(opened))
        return FolderImages(str(path), (), {"": tuple((one.name, -1, one.bytes) for one in top.pictures)}, notes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from None
