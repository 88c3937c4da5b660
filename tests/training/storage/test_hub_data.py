"""Data sets on the Hub are read at one commit."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from gen_vla.training.storage.hub_data import pinned, split_path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("hf://datasets/a/b", ("a/b", None, "")),
        ("hf://datasets/a/b/train/x.parquet", ("a/b", None, "/train/x.parquet")),
        ("hf://datasets/a/b@v1.0/train", ("a/b", "v1.0", "/train")),
        ("hf://datasets/a/b@refs/convert/parquet/train", ("a/b", "refs/convert/parquet", "/train")),
    ],
)
def test_a_path_is_pinned_to_the_commit_of_its_revision(path, parts, monkeypatch):
    asked = []

    def dataset_info(_: HfApi, name: str, revision: str | None) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    name, revision, rest = split_path(path)
    assert (name, revision, rest) == parts
    place, commit = pinned(path)
    assert (place, commit) == (f"hf://datasets/{name}@{COMMIT}{rest}", COMMIT)
    assert pinned(place) == (place, COMMIT)
    assert pinned(path, {path: "f" * 40})[1] == "f" * 40  # a resumed run
    assert asked == [(name, revision)], "a known commit is not asked for"


def test_other_paths_stay_and_a_broken_one_is_refused():
    assert pinned("runs/packed") == ("runs/packed", None)
    with pytest.raises(ValueError, match="expected hf://datasets/OWNER/NAME"):
        pinned("hf://datasets/alone")
