"""Uploads a packed data set to the Hub (`gen-vla pack --output hf://datasets/OWNER/NAME`)."""

import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from gen_vla.training.storage.hub_data import HUB_DATA, split_path
from gen_vla.training.storage.hub_requests import ask


@dataclass(frozen=True)
class DataTarget:
    """A repository of data, and the folder in it; "" for its root."""

    repo_id: str
    folder: str


def upload_target(output: str) -> DataTarget | None:
    """Where `hf://datasets/OWNER/NAME[/FOLDER]` is; `None` for a folder of this machine."""
    if "://" not in output:
        return None
    name, revision, rest = split_path(output)
    if revision:
        raise ValueError(f"got --output {output} with a revision, expected {HUB_DATA}{name}{rest}")
    return DataTarget(name, rest.strip("/"))


def upload_data(folder: Path, target: DataTarget, private: bool) -> str:
    """Uploads what the repository lacks; the commit's address. Files that arrived are not sent again.

    Raises:
        HubError: for what the Hub refuses.
    """
    api, repo_id = HfApi(), target.repo_id
    new = {"repo_type": "dataset", "private": private or None, "exist_ok": True}
    ask(f"create {repo_id}", lambda: api.create_repo(repo_id, **new))
    print(f"Uploading {folder} to {repo_id}", file=sys.stderr)
    return ask(
        f"upload {folder} to {repo_id}",
        lambda: api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=target.folder or None,
            repo_type="dataset",
            commit_message="Pack vision-language sets",
            ignore_patterns=[".*", "*/.*"],
        ),
        tries=2,
    )
