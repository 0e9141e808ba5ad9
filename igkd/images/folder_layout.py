"""Decides which directories of a folder of pictures are splits and which are classes.

A directory `Test` may be a split or a class of that name. Where a layout can be understood in two ways, a UserError asks the user to make
it clear; files that are left out are counted and reported.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from igkd.base.errors import UserError
from igkd.base.random_draws import default_test_mask
from igkd.images.folder_scan import CONTENTS, Directory, Opened, left_out, some

Role = Literal["train", "test", "validation"]
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "holdout"), "validation"),
}
_SPLIT = re.compile(
    rf"({'|'.join(sorted(_ROLES, key=len, reverse=True))})(s?|set|sets|data|dataset|images?|imgs?|pictures|split|part|shard|batch|chunk)"
)


def role_of(name: str) -> Role | None:
    """The split that a directory's name stands for (train, Training, TEST_SET, val, valid-images, ...); None if it names no split."""
    match = _SPLIT.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower()))
    return _ROLES[match[1]] if match else None


def resembled_role(name: str) -> Role | None:
    """The split that a part of the name stands for, as in seg_train, train2 or myTestImages; None if no part does."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return role_of(name) or next((role for role in map(role_of, words) if role), None)


def splits_of(top: Directory) -> tuple[dict[str, Directory] | None, list[str]]:
    """The directory of each split (None if the directories are classes), and sentences for the user about that choice."""
    found = top.directories
    known = {name: role for name in found if (role := role_of(name))}
    alike = {name: role for name in found if (role := resembled_role(name))}
    expected = f"name them train and test, with a directory for each class in them ({top.path}/train/CLASS/*.png)"
    if not any(found[name].directories for name in known):
        # No directory with a split's name holds class directories. A single such name is a class: train, bus, car; or valid, broken.
        pair = "train" in alike.values() and len(set(alike.values())) > 1
        if alike and (len(alike) == len(found) or (pair and (alike == known or any(found[name].directories for name in alike)))):
            raise UserError(
                f"folder:{top.path} holds {some(found)}: these look like splits, but not all of it is understood; {expected}; "
                f"if they are classes, put them into {top.path}/train and {top.path}/test"
            )
        return None, []
    roles = {role: [name for name in known if known[name] == role] for role in known.values()}
    for role, names in roles.items():
        if len(names) > 1:
            raise UserError(f"folder:{top.path} holds {some(names)}, each of which may be the {role} split; keep one of them there")
    others = [name for name in found if name not in known]
    if others and ("train" not in roles or len(roles) < 2 or any(name in alike for name in others)):
        raise UserError(
            f"folder:{top.path} holds {some(known)}, which may be splits, beside {some(others)}, which are not understood; "
            f"{expected}, and move away what is no split; if they are classes, put all of them into {top.path}/train and {top.path}/test"
        )
    chosen: dict[str, str] = {}
    if "train" in roles:
        chosen["train"] = roles["train"][0]
    if "test" in roles or "validation" in roles:
        chosen["test"] = roles.get("test", roles.get("validation", []))[0]
    unused = [*others, *(name for name in known if name not in chosen.values())]
    notes = []
    if any(name != split for split, name in chosen.items()) or unused:
        told = ", ".join(f"the {split} split is {name}" for split, name in chosen.items())
        notes.append(told + (f"; not used: {some(unused)}" if unused else ""))
    return {split: found[name] for split, name in chosen.items()}, notes


def check_classes(root: str, by_split: dict[str, dict[str, Directory]], classes: Sequence[str]) -> None:
    """Raise UserError if the directories do not look like classes, or the splits spell a class differently."""
    everywhere = [directory for found in by_split.values() for directory in found.values()]
    for directory in everywhere:
        inner = [name for name in directory.directories if role_of(name)]
        if inner:
            raise UserError(
                f"{directory.path} holds {some(inner)}: if these are splits, name that directory (folder:{directory.path}), or put the "
                f"splits above the classes: {root}/train/CLASS/*.png; otherwise give them names that are none of splits"
            )
    wrapped = len(classes) == 1 and all(d.directories and not d.pictures for d in everywhere)
    if wrapped or all(name.lower() in CONTENTS for name in classes) or ("" not in by_split and all(map(role_of, classes))):
        raise UserError(
            f"folder:{root}: {some(directory.path for directory in everywhere)} would be the only class(es), which is unlikely; "
            f"PATH must hold a directory for each class, or train and test with these in them: {root}/CLASS/*.png"
        )
    for found in by_split.values():
        composed = [unicodedata.normalize("NFC", name) for name in found]
        if twice := [name for name, one in zip(found, composed, strict=True) if composed.count(one) > 1]:
            raise UserError(f"folder:{root}: {', '.join(f'{name!a}' for name in twice)} look the same and would be two classes; merge them")
    if len(by_split) == 2:
        train, test = (by_split[split].keys() for split in ("train", "test"))
        same = {_plain(name): name for name in train - test}
        for name in sorted(test - train):
            if _plain(name) in same:
                raise UserError(
                    f"folder:{root}: class {same[_plain(name)]!a} of the train split and class {name!a} of the test split would be two "
                    "classes; give them the same name"
                )


def _plain(name: str) -> str:
    """A class's name without case, spaces, underscores and hyphens, and with accented letters in Unicode's composed form."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name).casefold())


def check_empty(
    by_split: dict[str, dict[str, Directory]], files: dict[str, tuple[tuple[str, int, int], ...]], classes: Sequence[str]
) -> None:
    """Raise UserError if a class's directory holds files, but no pictures."""
    empty = set(range(len(classes))) - {label for found in files.values() for _, label, _ in found}
    for number in sorted(empty):
        for found in by_split.values():
            directory = found.get(classes[number])
            if directory is not None and any(d.has_others for d in directory.all_directories()):
                raise UserError(
                    f"{directory.path} holds files but no pictures, whose names end in .png, .jpg and the like; "
                    "move it away if it is no class, or correct the names"
                )


def _drawn(root: str, found: tuple[tuple[str, int, int], ...]) -> tuple[dict[str, tuple[tuple[str, int, int], ...]], list[str]]:
    """Split pictures into train and test by a hash of their relative paths; gives the files by split and a sentence for the user.

    Adding pictures or moving the folder does not change the hashes.
    """
    names = [hashlib.blake2b(os.fsencode(unicodedata.normalize("NFC", name)), digest_size=8).digest() for name, _, _ in found]
    ids: NDArray[np.int64] = np.frombuffer(b"".join(names), dtype=np.int64)
    test = default_test_mask(np.array([label for _, label, _ in found], dtype=np.int64), ids)
    files = {
        split: tuple(one for one, is_test in zip(found, test, strict=True) if is_test == (split == "test")) for split in ("train", "test")
    }
    return files, [
        f"there are no train and test directories, so {test.sum():,} of the {len(found):,} pictures, a fifth drawn by a hash of their "
        f"names, are the test split and the others the train split; {root}/train/CLASS and {root}/test/CLASS would say which"
    ]


@dataclass(frozen=True)
class Scan:
    """The classes and pictures found in a directory."""

    classes: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int, int], ...]]
    """split -> (relative path, class, bytes) of every picture, sorted."""
    notes: tuple[str, ...]
    """Sentences for the user: which directories are which split, and what was left out."""


def scan(root: str) -> Scan:
    """List the pictures of PATH/train/CLASS and PATH/test/CLASS, or of PATH/CLASS, a fifth of which then become the test split.

    Args:
        root: PATH, absolute and with symbolic links resolved.

    Raises:
        UserError: there are no classes, the layout can be understood in two ways, or a link in it is not allowed.
        OSError: a directory cannot be read.
    """
    opened = Opened(root)
    top = Directory(opened)
    splits, notes = splits_of(top)
    _leave_out_stray(top, "picture beside the class directories" if splits is None else "picture beside the splits")
    by_split: dict[str, dict[str, Directory]] = {"": top.directories}
    if splits is not None:
        by_split = {split: directory.directories for split, directory in splits.items()}
        for directory in splits.values():
            _leave_out_stray(directory, "picture beside the class directories")
    classes = tuple(sorted({name for found in by_split.values() for name in found}))
    if not classes:
        raise UserError(f"folder:{root} holds no class directories; expected {root}/CLASS/*.png or {root}/train/CLASS/*.png")
    check_classes(root, by_split, classes)
    numbers, files = {name: i for i, name in enumerate(classes)}, {}
    seen: dict[tuple[int, int], str] = {}
    for split, found in by_split.items():
        pictures = [(picture, numbers[name]) for name, directory in found.items() for picture in directory.all_pictures()]
        pictures.sort(key=lambda one: one[0].name.split("/"))
        for picture, _ in pictures:
            first = seen.setdefault(picture.file, picture.name)
            if first is not picture.name and opened.has_links:
                raise UserError(f"{root}: {picture.name} and {first} are one file, since one is a link to the other; remove one of them")
        files[split] = tuple((picture.name, label, picture.bytes) for picture, label in pictures)
    check_empty(by_split, files, classes)
    if splits is None:
        files, told = _drawn(root, files[""])
        notes += told
    notes += left_out(opened)
    return Scan(classes, files, tuple(f"folder:{root}: {note}" for note in notes))


def _leave_out_stray(directory: Directory, kind: str) -> None:
    """Count the pictures that lie directly in a directory of directories as left out."""
    if directory.pictures:
        directory.opened.left_out[kind] += len(directory.pictures)
