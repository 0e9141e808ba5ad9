"""Lists the pictures and directories in a directory, without following links that lead out of it, and counts what it leaves out."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from igkd.base.errors import UserError

READ = "png apng jpg jpeg jpe jfif jif pjpeg pjp mpo webp gif bmp dib tif tiff pbm pgm ppm pnm ico jp2 j2k j2c jpc jpf jpx avif tga qoi"
NOT_READ = "heic heif hif jxl svg psd eps raw dng cr2 cr3 nef arw orf rw2 raf exr hdr dcm"
ENDINGS = frozenset([*READ.split(), *NOT_READ.split()])
"""Endings of picture files. Those in NOT_READ are listed, too: they fail to decode, so that each is reported to the user."""
NO_PICTURES = frozenset(["readme", "license", "licence", "copying", "notice", "changelog", "authors", "makefile", "icon\r"])
"""Lower-case names of files without an ending that are not pictures; any other file without an ending may be one."""
TOOLS = frozenset(
    ["__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler"]
    + ["lost+found", "system volume information", "network trash folder", "temporary items", "thumbs.db", "desktop.ini"]
)
"""Lower-case names of files and directories that file managers, archivers and servers create; hidden ones are left out anyway."""
CONTENTS = frozenset(
    ["image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "label", "labels", "annotation"]
    + ["annotations", "mask", "masks"]
)
"""Lower-case names that describe a kind of file, not a class. If all directories have such names, they are not classes."""
_MOST_TOLD = 6
"""Most names listed in one message."""


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    told = list(names)
    return ", ".join(told[:_MOST_TOLD]) + (f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else "")


class Picture(NamedTuple):
    """A file that may be a picture."""

    name: str
    """Path relative to the directory that was opened, with slashes."""
    bytes: int
    file: tuple[int, int]
    """Device and inode, which identify the file under any name."""


@dataclass
class Opened:
    """The directory that a scan starts from, and what the scan has found so far."""

    root: str
    """Absolute path with symbolic links resolved."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of files and directories left out, by kind."""
    reached: dict[str, str] = field(default_factory=dict)
    """The directories found so far: real path -> path by which each was found."""
    has_links: bool = False
    """Whether there are links, so that a file may be found under two names."""


class Directory:
    """One directory of a scan; its entries are read at first use.

    A link out of the scanned directory raises UserError: a directory from someone else must not bring pictures from elsewhere on this
    machine into a store or a page. So does a directory reached twice, since its pictures would be in two splits or classes.
    """

    def __init__(self, opened: Opened, name: str = "", real: str | None = None) -> None:
        self.opened = opened
        self.name = name
        """Path relative to the scanned directory; "" for that directory itself."""
        self.path = os.path.join(opened.root, name) if name else opened.root
        self.real = real or self.path
        self.has_others = False
        """Whether it holds files that are neither hidden nor pictures; set when its entries are read."""
        first = opened.reached.setdefault(self.real, self.path)
        if first != self.path:
            raise UserError(
                f"{self.path} and {first} are one directory, since one of them is a link: its pictures would be there twice; remove one"
            )

    @property
    def directories(self) -> dict[str, "Directory"]:
        """Its subdirectories by name, sorted."""
        return self._listed[0]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures directly in it, sorted by name."""
        return self._listed[1]

    def all_pictures(self) -> Iterator[Picture]:
        """The pictures in it and in all directories below it."""
        for directory in self.all_directories():
            yield from directory.pictures

    def all_directories(self) -> Iterator["Directory"]:
        """Itself and all directories below it."""
        found: list[Directory] = [self]  # a list, since a thousand nested directories would exceed Python's recursion limit
        for directory in found:
            found.extend(directory.directories.values())
            yield directory

    @cached_property
    def _listed(self) -> tuple[dict[str, "Directory"], list[Picture]]:
        directories, pictures = {}, []
        with os.scandir(self.path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{self.name}/{entry.name}" if self.name else entry.name
            if entry.name.startswith((".", "~$")) or entry.name.lower() in TOOLS:
                self._leave_out("._*" if entry.name.startswith("._") else entry.name)
                continue
            real = os.path.join(self.real, entry.name)
            if entry.is_symlink():
                real = self._followed(entry.path)
            if entry.is_dir():
                directories[entry.name] = Directory(self.opened, name, real)
            elif not entry.is_file():
                self._leave_out("device, pipe or socket")
            elif (ending := _no_picture(entry.name)) is not None:
                self._leave_out(ending)
                self.has_others = True
            else:
                status = entry.stat()
                self.opened.has_links |= status.st_nlink > 1
                pictures.append(Picture(name, status.st_size, (status.st_dev, status.st_ino)))
        return directories, pictures

    def _leave_out(self, kind: str) -> None:
        self.opened.left_out[kind] += 1

    def _followed(self, path: str) -> str:
        """The real path of a link's target; raises UserError if the target does not exist or lies outside the scanned directory."""
        target, root = os.path.realpath(path), self.opened.root
        self.opened.has_links = True
        if not os.path.exists(path):
            raise UserError(f"{path} is a link to {os.readlink(path)}, where nothing is; remove it, or put there what it means")
        if not Path(target).is_relative_to(root):
            raise UserError(f"{path} is a link to {target}, outside of {root}; put a copy there (cp -rL) if it belongs to it")
        return target


def _no_picture(name: str) -> str | None:
    """The kind (such as "*.txt") of a file whose name says that it is not a picture; None if it may be one."""
    stem, _, ending = name.rpartition(".")
    if not stem or not re.search("[A-Za-z]", ending):  # no ending, or a number
        return name if name.lower() in NO_PICTURES else None
    return None if ending.lower() in ENDINGS else f"*.{ending}"


def left_out(opened: Opened) -> list[str]:
    """One sentence about what was left out; an empty list if nothing was."""
    if not opened.left_out:
        return []
    count = sum(opened.left_out.values())
    return [
        f"left out, since they are no pictures: {count} files or directories ({some(f'{n} {k}' for k, n in opened.left_out.most_common())})"
    ]
