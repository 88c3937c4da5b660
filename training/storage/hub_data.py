"""Data sets on the Hub: which commit is read, and uploading a packed one."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi

from gen_vla.training.storage.hub_requests import ask


HUB_DATA = "hf://datasets/"
_PATH = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<rest>/.*)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_path(path: str) -> tuple[str, str | None, str]:
    """`hf://datasets/OWNER/NAME[@REVISION][/FOLDER]` as ("OWNER/NAME", revision, "/FOLDER")."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError(f"got {path}, expected {HUB_DATA}OWNER/NAME[@REVISION], perhaps with a folder behind it")
    return found["name"], found["revision"], found["rest"] or ""


def pinned(path: str, known: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """A path at the commit that it means now, and the commit; a path of another kind as it is, and `None`; raises
    `HubError` where the Hub cannot be asked, or has no such data set or revision.

    Args:
        known: commits by path, of an earlier start of the same run.
    """
    if not path.startswith(HUB_DATA):
        return path, None
    name, revision, rest = split_path(path)
    commit = (known or {}).get(path)
    if commit is None:
        commit = revision if revision and _COMMIT.fullmatch(revision) else None
    if commit is None:
        what = f"find the data set {name} on the Hub"
        commit = str(ask(what, lambda: HfApi().dataset_info(name, revision=revision)).sha)
    return f"{HUB_DATA}{name}@{commit}{rest}", commit


def upload_target(output: str) -> tuple[str, str] | None:
    """Repository and folder ("" for its root) of `hf://datasets/OWNER/NAME[/FOLDER]`; `None` for a folder here."""
    if "://" not in output:
        return None
    name, revision, rest = split_path(output)
    if revision:
        raise ValueError(f"got --output {output} with a revision, expected {HUB_DATA}{name}{rest}")
    return name, rest.strip("/")


def upload_data(folder: Path, target: tuple[str, str], private: bool) -> str:
    """Uploads what the repository lacks; the commit's address. Raises `HubError` for what the Hub refuses."""
    api, (repo_id, path) = HfApi(), target
    new = {"repo_type": "dataset", "private": private or None, "exist_ok": True}
    ask(f"create {repo_id}", lambda: api.create_repo(repo_id, **new))
    print(f"Uploading {folder} to {repo_id}", file=sys.stderr)
    return ask(
        f"upload {folder} to {repo_id}",
        lambda: api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=path or None,
            repo_type="dataset",
            commit_message="Pack vision-language sets",
            ignore_patterns=[".*", "*/.*"],
        ),
        tries=2,
    )
