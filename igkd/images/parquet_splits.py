"""Decides which Parquet files are the train split and which the test split."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from igkd.base.errors import UserError
from igkd.base.storage import absolute
from igkd.images.folder_layout import resembled_role, role_of
from igkd.images.folder_scan import some


def split_options(text: str) -> tuple[str, str, dict[str, str]]:
    """Split `URI,label=COLUMN,image=COLUMN` into the absolute URI, the options as written, and the options as a dict.

    Raises:
        UserError: an option is given twice, or is malformed.
    """
    match = re.fullmatch(r"(.*?)((?:,(?:label|image)=[^,]*)*)", text, re.DOTALL)
    assert match is not None  # anything is a URI
    uri, options = match[1], match[2]
    given = [option.split("=", 1) for option in options.split(",")[1:]]
    if len(dict(given)) < len(given) or not all(column for _, column in given):
        raise UserError(f"'parquet:{text}' is not understood: write for example parquet:URI,label=COLUMN,image=COLUMN, each once")
    absolute(uri)  # raises if the path begins with an unknown home directory
    # Links are not resolved: in Hugging Face's cache only the link's name says which split a file is.
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri)), options, dict(given)


def split_of_file(path: str) -> tuple[dict[str, list[str]], list[str]]:
    """The split that a single file's name says, or "" (both splits) if it says none; and sentences for the user."""
    name = path.rsplit("/", 1)[-1]
    role = resembled_role(_group(name))
    if role is None:
        return {"": [path]}, []
    split = "train" if role == "train" else "test"
    return {split: [path]}, [] if role == split else [f"the {split} split is {name}"]


def _group(name: str) -> str:
    """The part of a file's name that all files of a split share: "train" in train-00001-of-00003-0123456789abcdef.parquet."""
    return re.sub(r"([-_.]?\d+)*(-of-\d+)?(-[0-9a-f]{16})?(\.parquet)?$", "", name, flags=re.IGNORECASE)


def splits_of_files(uri: str, beside: Sequence[str], data: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The files of each split, and sentences for the user.

    Args:
        beside: paths of the entries of the directory.
        data: paths of the entries of its subdirectory data/.

    Raises:
        UserError: no file belongs to a split, some files are missing, or it is not clear which file belongs to which split.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted([*beside, *data]):
        name = path.rsplit("/", 1)[-1]
        if path.lower().endswith(".parquet") and not name.startswith("."):
            groups.setdefault(_group(name), []).append(path)
    known = {group: role for group in groups if (role := role_of(group))}
    if not known:
        seen = f"; it holds {some(group + '*.parquet' for group in groups)}" if groups else ""
        raise UserError(f"parquet:{uri} holds no train-*.parquet or test-*.parquet, there or under data/{seen}")
    roles = {role: [group for group in known if known[group] == role] for role in known.values()}
    unclear = [group for group in groups if group not in known and resembled_role(group)]
    unclear += [group for found in roles.values() if len(found) > 1 for group in found]
    if unclear:
        raise UserError(
            f"parquet:{uri} holds {some(group + '*.parquet' for group in groups)}: it is not clear which are the train and which "
            "the test split; name them train-*.parquet and test-*.parquet, and move away what is neither"
        )
    for group in known:
        if len({path.rsplit("/", 1)[0] for path in groups[group]}) > 1:
            raise UserError(f"parquet:{uri} holds {group}*.parquet, and under data/ too; keep those of one place, or name data/ itself")
        _check_complete(uri, group, groups[group])
    chosen = {"train": roles["train"][0]} if "train" in roles else {}
    if "test" in roles or "validation" in roles:
        chosen["test"] = roles.get("test", roles.get("validation", []))[0]
    unused = [f"{group}*.parquet" for group in groups if group not in chosen.values()]
    notes = []
    if any(role_of(group) != split for split, group in chosen.items()) or unused:
        told = ", ".join(f"the {split} split is {group}*.parquet" for split, group in chosen.items())
        notes.append(told + (f"; not used: {some(unused)}" if unused else ""))
    return {split: groups[group] for split, group in chosen.items()}, notes


def _check_complete(uri: str, group: str, paths: Sequence[str]) -> None:
    """Raise UserError unless the files of a split are those that their names (00001-of-00003) say, each once; numbered from 0 or from 1."""
    numbered = [re.search(r"[-_.](\d+)-of-(\d+)", path.rsplit("/", 1)[-1]) for path in paths]
    found = [(int(match[1]), int(match[2])) for match in numbered if match]
    totals = {total for _, total in found}
    numbers = sorted(number for number, _ in found)
    whole = [list(range(first, first + len(paths))) for first in (0, 1)]
    if found and (len(totals) > 1 or len(paths) != max(totals)):
        raise UserError(
            f"parquet:{uri} holds {len(paths)} files {group}*.parquet, which by their names are {' or '.join(map(str, sorted(totals)))}; "
            "get those that are missing, or move away those that do not belong there"
        )
    if found and numbers not in whole:
        raise UserError(
            f"parquet:{uri} holds {len(paths)} files {group}*.parquet, of which by their names one is there twice, or another is missing; "
            "get those that are missing, or move away those that do not belong there"
        )


def check_links(root: str, paths: Sequence[str]) -> None:
    """Raise UserError if a link leads out of the directory or to a file that is listed already, as for a folder of pictures.

    In Hugging Face's cache every file in snapshots/ is a link into the neighbouring blobs/, so there the directory above both counts.
    """
    inside = Path(os.path.realpath(root))
    for parent in inside.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            inside = parent.parent
    reached: dict[str, str] = {}
    for path in paths:
        target = os.path.realpath(path)
        if not os.path.exists(target):
            raise UserError(f"{path} is a link to {target}, where nothing is; remove it, or put there what it means")
        if not Path(target).is_relative_to(inside):
            raise UserError(f"{path} is a link to {target}, outside of {inside}; put a copy there (cp -L) if it belongs to it")
        first = reached.setdefault(target, path)
        if first != path:
            raise UserError(f"{path} and {first} are one file, since one is a link to the other; remove one of them")
