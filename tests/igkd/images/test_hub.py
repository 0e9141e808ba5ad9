"""Data sets of the Hugging Face Hub, from a server that answers as it does, and from its cache."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hub import COMMIT, hub, looked
from tests.helpers.pictures import pngs, write_parquet

CLASSES = ["cat", "dog", "ox"]
DATA_SETS = {
    "me/plain": ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"],
    "me/data": ["data/train-00000-of-00001", "data/test-00000-of-00001"],
    "me/one": ["plain_text/train-00000-of-00001", "plain_text/test-00000-of-00001"],
    "me/two": ["large/train-00000-of-00001", "large/test-00000-of-00001", "small/train-0-of-1", "small/test-0-of-1"],
    "me/csv": [],
}
GOOD = ["hf:me/plain", "hf:me/plain@main", "hf:me/data", "hf:me/one", "hf:me/two/small", "hf:me/plain,label=label"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The Hub's cache after some data sets were opened, and what was seen of these and of some that are not there."""
    root = tmp_path_factory.mktemp("hub")
    for name, files in DATA_SETS.items():
        (root / name).mkdir(parents=True)
        (root / name / "README.md").write_text(name)
        for number, file in enumerate(files):
            path = root / name / f"{file}.parquet"
            path.parent.mkdir(exist_ok=True)
            write_parquet(path, pngs(4, 4 * number), [0, 1, 2, 1], CLASSES)
    bad = ["hf:me/none", "hf:me/gated", "hf:me/plain@v9", "hf:me/two", "hf:me/csv", "hf:me/two/none"]
    malformed = ["hf:plain", "hf:me/plain@", "hf:../../etc", "hf:me/plain/@main", "hf:me/--x--", "hf:me/plain,color=red"]
    with hub({name: root / name for name in DATA_SETS}) as endpoint:
        return root / "home", looked(root / "home", [*GOOD, *bad, *malformed], endpoint)


def test_its_parquet_files_are_read_and_its_revision_is_fixed(cache: tuple[Path, dict[str, Any]]) -> None:
    home, found = cache
    places = ("me/plain", "me/plain", "me/data", "me/one", "me/two", "me/plain")
    for text, place in zip(GOOD, places, strict=True):
        named, classes, train, label, size, uri = found[text]
        folder = {"me/one": "/plain_text", "me/two": "/small"}.get(place, "")
        assert named == f"hf:{place}@{COMMIT}{folder}" + (",label=label" if "," in text else "")
        assert classes == CLASSES and train == (8 if place == "me/plain" else 4) and label == 1 and size > 50
        assert uri.startswith(str(home))


def test_without_a_network_the_cache_is_read(cache: tuple[Path, dict[str, Any]]) -> None:
    """Where nothing answers, and where the user says that there is no network."""
    home, before = cache
    fixed = f"hf:me/plain@{COMMIT}"
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = looked(home, [*GOOD, fixed, "hf:me/none"], **offline)
        assert {text: found[text] for text in GOOD} == {text: before[text] for text in GOOD} and found[fixed] == before["hf:me/plain"]
        assert "hf:me/none cannot be downloaded, and is not in the cache" in found["hf:me/none"]
        assert "$HF_HOME" in found["hf:me/none"] and len(found["hf:me/none"]) < 500


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hf:me/none", "the Hub has no data set me/none, or it is private: check its name, or say who you are by $HF_TOKEN"),
        ("hf:me/gated", "hf:me/gated is given only to those who accept its terms"),
        ("hf:me/plain@v9", "me/plain has no revision v9: give a branch, a tag or a commit of it"),
        ("hf:me/two", "hf:me/two has Parquet files in 2 folders: choose one, such as hf:me/two/large, hf:me/two/small"),
        ("hf:me/csv", "hf:me/csv has no Parquet files"),
        ("hf:me/two/none", "nothing is there"),
        ("hf:plain", "'hf:plain' names no data set; one is hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FOLDER"),
        ("hf:me/plain@", "names no data set"),
        ("hf:../../etc", "names no data set"),
        ("hf:me/plain/@main", "names no data set"),
        ("hf:me/--x--", "names no data set"),
        ("hf:me/plain,color=red", "after URI there may be ,label=COLUMN and ,image=COLUMN"),
    ],
)
def test_what_is_not_there_or_malformed_is_one_sentence(cache: tuple[Path, dict[str, Any]], text: str, sentence: str) -> None:
    assert sentence in cache[1][text] and "\n" not in cache[1][text]


def test_a_worker_on_another_machine_downloads_it_for_itself(cache: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The source that a driver sends has paths of the driver's cache; where they are not, its files are got anew."""
    sent, root = tmp_path / "sent", cache[0].parent
    with hub({name: root / name for name in DATA_SETS}) as endpoint:
        first = looked(tmp_path / "here", ["hf:me/one"], endpoint, SENT=str(sent))["sent"]
        (tmp_path / "here").rename(tmp_path / "away")
        second = looked(tmp_path / "there", [], endpoint, SENT=str(sent))["sent"]
    assert first[:2] == second[:2] == [f"hf:me/one@{COMMIT}/plain_text", 4]
    assert first[2].startswith(str(tmp_path / "here")) and second[2].startswith(str(tmp_path / "there"))
