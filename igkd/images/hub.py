"""The image source `hf:OWNER/NAME`: Parquet files of a data set on the Hugging Face Hub, or in its cache."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igkd.base.errors import UserError
from igkd.base.schema import short
from igkd.images.parquet import ParquetImages
from igkd.images.parquet_splits import split_options

_PLACE = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[\w.-]+))?(?:/(?P<folder>[^,@]+?))?/?", re.ASCII
)
MOST = 6
"""Number of folders that a message names."""


@dataclass(frozen=True)
class HubImages(ParquetImages):
    """Parquet files of a data set of the Hub, `hf:OWNER/NAME[@REVISION][/FOLDER]`, as `parquet:` reads them.

    They are downloaded once, to the Hub's own cache ($HF_HOME), and read there; without a network, what the cache has is read. The
    revision is fixed when the source is opened, so that a store says of which one it is.
    """

    place: str = dataclasses.field(kw_only=True)
    """OWNER/NAME@COMMIT, perhaps with /FOLDER: what the source is named."""

    def __str__(self) -> str:
        return f"hf:{self.place}{self.options}"

    def __reduce__(self) -> Any:
        """A worker on another machine has a cache of its own."""
        return _here, (str(self), {one.name: getattr(self, one.name) for one in dataclasses.fields(self)})


def _here(text: str, state: dict[str, Any]) -> HubImages:
    """The source of these fields if this machine has its files; else the same, downloaded."""
    return HubImages(**state) if os.path.isdir(state["uri"]) else open_hub(text.removeprefix("hf:"))


def open_hub(text: str) -> HubImages:
    """Open a data set of the Hub by what follows `hf:`.

    Raises:
        UserError: the text is malformed; the Hub, or without a network its cache, has no such data set; or `parquet:` cannot read it.
    """
    at = text.find(",")
    place, options = (text, "") if at < 0 else (text[:at], text[at:])
    found = _PLACE.fullmatch(place)
    if found is None:
        raise UserError(f"{short(f'hf:{text}')} names no data set; one is hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FOLDER")
    split_options(text)
    repository, folder = found["repository"], found["folder"]
    snapshot = downloaded(repository, found["revision"], folder)
    folder = folder or only_folder(repository, snapshot)
    source = ParquetImages.open(f"{snapshot / folder if folder else snapshot}{options}")
    named = f"{repository}@{snapshot.name}{f'/{folder}' if folder else ''}"
    return HubImages(**{one.name: getattr(source, one.name) for one in dataclasses.fields(source)}, place=named)


def downloaded(repository: str, revision: str | None, folder: str | None) -> Path:
    """The directory of a revision's Parquet files in the Hub's cache; what is missing there is downloaded.

    Raises:
        UserError: there is no such data set, or it cannot be downloaded.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise UserError(f"--images hf: needs the Hub's own library ({error}): pip install huggingface_hub") from None
    shown = f"hf:{repository}{'' if revision is None else f'@{revision}'}"
    patterns = [f"{folder}/*.parquet" if folder else "*.parquet"]
    try:
        return Path(huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(
            f"{shown} is given only to those who accept its terms: accept them on its page, and say who you are by $HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision}: give a branch, a tag or a commit of it") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hub has no data set {repository}, or it is private: check its name, or say who you are by $HF_TOKEN"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{short(shown)} names no data set: {str(error).splitlines()[0]}") from None
    except (HfHubHTTPError, OSError) as error:  # errors of a connection, and of what is not in the cache, are OSErrors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{shown} cannot be downloaded, and is not in the cache ({type(error).__name__}: {reason[:160]}); on a machine with a network, "
            "the Hub's library keeps it in $HF_HOME (by default ~/.cache/huggingface), from where it can be copied here"
        ) from None


def only_folder(repository: str, snapshot: Path) -> str | None:
    """The folder of a data set that has its Parquet files in one; None if they are at the top, or in data/.

    Raises:
        UserError: several folders have some; the message names them.
    """
    folders = {path.parent.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet")}
    if not folders:
        raise UserError(f"hf:{repository} has no Parquet files: choose another --images, or its revision @refs/convert/parquet")
    if folders <= {".", "data"}:
        return None
    if len(folders) > 1:
        listed = ", ".join(f"hf:{repository}/{one}" for one in sorted(folders - {"."})[:MOST])
        raise UserError(f"hf:{repository} has Parquet files in {len(folders)} folders: choose one, such as {listed}")
    return folders.pop()
