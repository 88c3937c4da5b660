"""What the Hub has under a repository's name, who may change it, and how a folder differs from it.

The upload itself is in `hub_publishing.py`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from gen_vla.training.storage.hub_requests import HubError, ask


MAIN = "main"
KEPT = {".gitattributes"}  # the Hub writes it: which files are large ones


@dataclass(frozen=True)
class Destination:
    """Where a repository goes."""

    repo_id: str  # `OWNER/NAME`
    branch: str = MAIN  # gets the commit; a missing one is created from main
    private: bool = False  # for a new repository; an existing one stays what it is
    message: str | None = None  # of the commit
    tag: str | None = None  # a name for the commit, for `revision=`
    collection: str | None = None  # slug of a collection that the repository is added to


@dataclass(frozen=True)
class HubRepository:
    """A repository on the Hub; `branches` and `tags` map names to commits."""

    private: bool
    branches: dict[str, str]
    tags: dict[str, str]

    def head(self, branch: str) -> str:
        """The commit that a commit to `branch` follows."""
        return self.branches.get(branch, self.branches[MAIN])


@dataclass(frozen=True)
class FileChange:
    """What a commit does to one file; `size` in bytes is the new one, or that of the file deleted."""

    path: str
    size: int
    kind: Literal["new", "changed", "unchanged", "deleted"]


def read_repository(api: HfApi, repo_id: str) -> HubRepository | None:
    """What is there; `None` if there is nothing, or a private repository that this token may not see."""
    try:
        info = ask(f"look {repo_id} up", lambda: api.model_info(repo_id))
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise
    refs = ask(f"list the branches of {repo_id}", lambda: api.list_repo_refs(repo_id))
    branches, tags = ({ref.name: ref.target_commit for ref in kind} for kind in (refs.branches, refs.tags))
    return HubRepository(bool(info.private), branches, tags)


def check_access(api: HfApi, destination: Destination) -> HubRepository | None:
    """What is there now, after everything that can be checked before the long work.

    Raises:
        HubError: without a valid token, or without the right to write; for a public repository that shall be private;
            for a branch that is a tag, a tag in use, or a collection that is missing.
    """
    account = ask("check the token", api.whoami)
    if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise HubError(f"got a token of {account['name']} that may only read; make one that may write")
    roles = {account["name"]: "admin", **{org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}}
    repo_id, slug = destination.repo_id, destination.collection
    repository = read_repository(api, repo_id)
    if repository is not None:
        # Asks whether this file is a large one, which the Hub answers only to those who may write.
        question = [CommitOperationAdd("README.md", b"-")]
        ask(f"write to {repo_id}", lambda: api.preupload_lfs_files(repo_id, question), tries=1)
        check_names(repository, destination)
    elif roles.get(repo_id.split("/")[0]) in (None, "read"):
        owners = ", ".join(name for name, role in roles.items() if role != "read")
        raise HubError(f"got {repo_id}, which does not exist, and a token that creates repositories of {owners} only")
    if slug:
        ask(f"find the collection {slug}", lambda: api.get_collection(slug))
        if slug.split("/")[0] not in roles:
            raise HubError(f"got the collection {slug}, expected one of {', '.join(roles)}")
    return repository


def check_names(repository: HubRepository, destination: Destination) -> None:
    """Raises `HubError` if what is there does not go together with what is asked for."""
    repo_id, branch, tag = destination.repo_id, destination.branch, destination.tag
    if destination.private and not repository.private:
        raise HubError(f"got --private for {repo_id}, which is public; make it private in its settings first")
    if branch in repository.tags:
        raise HubError(f"got the revision {branch}, which is a tag of {repo_id}; expected a branch")
    if tag in repository.branches:
        raise HubError(f"got the tag {tag}, which is a branch of {repo_id}; choose another name")
    if tag in repository.tags and repository.tags[tag] != repository.head(branch):
        raise HubError(f"got the tag {tag}, which {repo_id} already has on an older commit; choose another name")


def compare(api: HfApi, folder: Path, repo_id: str, revision: str | None) -> list[FileChange]:
    """The changes that turn the files of a commit (`None`: no files) into those of the folder, sorted by path."""
    remote: dict[str, RepoFile] = {}
    if revision is not None:
        listing = ask(
            f"list the files of {repo_id}",
            lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)),
            tries=1,
        )
        remote = {entry.path: entry for entry in listing if isinstance(entry, RepoFile)}
    changes = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        kind = "new" if name not in remote else "unchanged" if is_same(path, remote[name]) else "changed"
        changes.append(FileChange(name, path.stat().st_size, kind))
    kept = {change.path for change in changes} | KEPT
    changes += [FileChange(name, entry.size, "deleted") for name, entry in remote.items() if name not in kept]
    return sorted(changes, key=lambda change: change.path)


def is_same(path: Path, entry: RepoFile) -> bool:
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is None:
        return git_hash(path.read_bytes()) == entry.blob_id
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256


def differences(changes: list[FileChange]) -> list[FileChange]:
    return [change for change in changes if change.kind != "unchanged"]
