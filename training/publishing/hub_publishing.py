"""Publishes a trained model on the Hub: one commit with everything, or none.

The order: check the access, assemble and verify (`assembling.py`), compare with what is there (`py`), send
the large files, commit, tag, add to the collection. A step that fails leaves every branch as it was.

The commit names its parent, so it cannot overwrite what somebody else published meanwhile, and may be sent twice when
an answer is lost. Large files go to the Hub's storage before it, under the hash of their content: those that have
arrived are not sent again, by this run or a later one. `HfApi.upload_folder` may make several commits.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from rich.console import Console
from rich.table import Table

from gen_vla.training.lora import check_checkpoint
from gen_vla.training.publishing.assembling import check_repo_id, check_target, install_in_cache, publish_to_folder
from gen_vla.training.storage.hub_requests import CONFLICT, HubError, ask


MAIN = "main"
KEPT = {".gitattributes"}  # the Hub writes it: which files are large ones
STYLES = {"new": "green", "changed": "yellow", "unchanged": "dim", "deleted": "red"}


@dataclass(frozen=True)
class Destination:
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


@dataclass(frozen=True)
class Publication:
    """What was published, or would be; `commit` is `None` after a dry run, `made` says whether the commit is new."""

    repo_id: str
    changes: list[FileChange]
    commit: str | None = None
    made: bool = False


def publish(
    checkpoint: str | Path,
    destination: Destination,
    output: str | Path | None = None,
    dry_run: bool = False,
    results: dict[str, Any] | None = None,
    dtype: str | None = None,
) -> Publication:
    """Assembles a repository, verifies it and puts it on the Hub in one commit."""
    check_repo_id(destination.repo_id)
    checkpoint, api = check_checkpoint(checkpoint), HfApi()
    if output is not None:
        check_target(output, checkpoint)
    if not dry_run:
        check_access(api, destination)  # before the long work
    with assembled(checkpoint, destination.repo_id, output, results, dtype) as folder:
        return preview(folder, destination, api) if dry_run else upload(folder, destination, api)


def install(
    checkpoint: str | Path,
    repo_id: str,
    cache_dir: str | Path | None = None,
    output: str | Path | None = None,
    results: dict[str, Any] | None = None,
    dtype: str | None = None,
) -> Path:
    """As `publish`, but into this machine's cache, where `from_pretrained` finds it; the snapshot's folder."""
    with assembled(checkpoint, repo_id, output, results, dtype) as folder:
        return install_in_cache(folder, repo_id, cache_dir)


def read_results(path: Path) -> dict[str, Any]:
    """The figures of a file, for the model card; `ValueError` if it holds none."""
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not isinstance(results.get("figures"), list):
        raise ValueError(f'got {path} without a list of "figures", expected what publishing/card.py describes')
    return results


@contextmanager
def assembled(
    checkpoint: str | Path,
    repo_id: str,
    output: str | Path | None,
    results: dict[str, Any] | None,
    dtype: str | None = None,
) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gen-vla-repository-") as temporary:
        print(f"Assembling {repo_id} and verifying it in a fresh interpreter", file=sys.stderr)
        yield publish_to_folder(checkpoint, repo_id, output or Path(temporary) / "repository", results, dtype)


def preview(folder: Path, destination: Destination, api: HfApi) -> Publication:
    try:
        repository = read_repository(api, destination.repo_id)
    except HubError as error:
        if error.status is not None:
            raise
        print(f"{error}; so this shows all files as new", file=sys.stderr)
        repository = None
    if repository is not None:
        check_names(repository, destination)
    head = repository.head(destination.branch) if repository else None
    return Publication(destination.repo_id, compare(api, folder, destination.repo_id, head))


def upload(folder: Path, destination: Destination, api: HfApi | None = None) -> Publication:
    """Makes the files of a verified folder those of the repository on the Hub, in one commit.

    Files there that the folder lacks are deleted by the same commit. If nothing differs, there is no commit; the tag
    and the collection asked for are taken care of all the same. A branch or a repository created for a commit that
    then fails may stay, with the files it began with.

    Raises:
        HubError: see `check_access`; and if the Hub cannot be reached or someone else commits meanwhile.
    """
    api = api or HfApi()
    repo_id, branch, tag = destination.repo_id, destination.branch, destination.tag
    repository = check_access(api, destination)
    if repository is None:
        private = destination.private or None  # an organisation has a default of its own
        ask(f"create {repo_id}", lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        repository = read_repository(api, repo_id)
    if repository is None:
        raise HubError(f"could not find {repo_id} after creating it; run it again")
    print(f"Comparing with what {api.endpoint} has", file=sys.stderr)
    head = repository.head(branch)
    changes = compare(api, folder, repo_id, head)
    made = bool(differences(changes))
    if made and tag in repository.tags:
        raise HubError(f"got the tag {tag}, which {repo_id} already has; choose another name")
    operations = send_large_files(api, folder, destination, repository, changes) if made else []
    if branch not in repository.branches:  # if somebody else creates it meanwhile, the commit is refused
        ask(
            f"make the branch {branch}",
            lambda: api.create_branch(repo_id, branch=branch, revision=head, exist_ok=True),
        )
    if made:
        head = commit(api, folder, destination, head, operations)
        if left := differences(compare(api, folder, repo_id, head)):
            raise HubError(f"got other files in commit {head} of {repo_id} than were sent: {left}; look at it there")
    tag_and_collect(api, destination, head)
    return Publication(repo_id, changes, head, made)


def send_large_files(
    api: HfApi, folder: Path, destination: Destination, repository: HubRepository, changes: list[FileChange]
) -> list[Any]:
    repo_id = destination.repo_id
    changed = [change.path for change in changes if change.kind in ("new", "changed")]
    additions = [CommitOperationAdd(path, str(folder / path)) for path in changed]
    revision = destination.branch if destination.branch in repository.branches else MAIN
    try:
        ask(
            f"send the large files of {repo_id}",
            lambda: api.preupload_lfs_files(repo_id, additions, revision=revision, free_memory=False),
            tries=1,
        )
    except HubError as error:
        note = "; nothing was published, and files that arrived are not sent again by the next run"
        raise HubError(f"{error}{note}", error.status) from error
    return [*additions, *(CommitOperationDelete(change.path) for change in changes if change.kind == "deleted")]


def commit(api: HfApi, folder: Path, destination: Destination, parent: str, operations: list[Any]) -> str:
    repo_id, branch = destination.repo_id, destination.branch
    message = destination.message or f"Publish {repo_id.rpartition('/')[2]}"
    options: dict[str, Any] = {"commit_message": message, "revision": branch, "parent_commit": parent}
    try:
        return ask(f"commit to {repo_id}", lambda: api.create_commit(repo_id, operations, **options)).oid
    except HubError as error:
        if error.status not in CONFLICT:
            raise
        repository = read_repository(api, repo_id)
        head = repository.head(branch) if repository else parent
        if head != parent and not differences(compare(api, folder, repo_id, head)):
            return head  # the commit was made, and only the answer got lost
        note = "somebody else committed meanwhile; nothing was published, run it again to publish on top of that"
        raise HubError(f"could not commit to {repo_id}: {note}", error.status) from error


def tag_and_collect(api: HfApi, destination: Destination, commit: str) -> None:
    """Tags the commit and adds the repository to its collection; an error says what has been published already."""
    repo_id, tag, slug = destination.repo_id, destination.tag, destination.collection
    try:
        if tag:
            ask(f"tag {repo_id} as {tag}", lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))
        if slug:
            ask(f"add it to {slug}", lambda: api.add_collection_item(slug, repo_id, "model", exists_ok=True))
    except HubError as error:
        note = "; run it again for the rest"
        raise HubError(f"published {repo_id} as commit {commit}, but {error}{note}", error.status) from error


def show(publication: Publication) -> None:
    table = Table("file", "what", title=publication.repo_id)
    table.add_column("MB", justify="right")
    for change in publication.changes:
        table.add_row(change.path, change.kind, f"{change.size / 1e6:,.3f}", style=STYLES[change.kind])
    console = Console()
    console.print(table)
    sent = [change.size for change in publication.changes if change.kind in ("new", "changed")]
    total = f"{len(sent)} files, {sum(sent) / 1e6:,.3f} MB,"
    if publication.commit is None:
        message = f"Dry run: {total} would be uploaded to {publication.repo_id}"
    elif publication.made:
        message = f"Published {total} to {publication.repo_id} as commit {publication.commit}"
    else:
        message = f"Nothing to do: {publication.repo_id} has the same files at commit {publication.commit}"
    console.print(message, soft_wrap=True, highlight=False)
