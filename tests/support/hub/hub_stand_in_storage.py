"""What the stand-in for the Hub keeps: repositories, whose commits happen in one step or not at all, and the rest."""

import hashlib
import json
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any


GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # a new repository of the Hub holds this file
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".npz")
MAIN = "main"


class Refusal(Exception):
    """An answer other than 200: status, message, and the Hub's own error code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """One file: its bytes, and whether it is in the storage of large files."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of a file; of a large one, of the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        content = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A tree of files, named by a hash over all there is."""

    tree: dict[str, Blob]
    parent: str | None
    message: str

    @property
    def sha(self) -> str:
        names = sorted((path, blob.oid) for path, blob in self.tree.items())
        return hashlib.sha1(json.dumps([self.parent, self.message, names]).encode()).hexdigest()


@dataclass
class Repository:
    """Branches and tags that point to commits."""

    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        """Makes it the head of `branch`."""
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha

    def sha(self, revision: str) -> str:
        """A branch, a tag or a commit; `Refusal` if there is none."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        if found not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def tree(self, revision: str) -> dict[str, Blob]:
        """All files of a revision."""
        return self.commits[self.sha(revision)].tree

    def history(self) -> list[str]:
        """The messages of the main branch, the newest first."""
        messages, sha = [], self.branches.get(MAIN)
        while sha is not None:
            messages.append(self.commits[sha].message)
            sha = self.commits[sha].parent
        return messages


@dataclass(frozen=True)
class Account:
    """Who has a token: a name, the organisations it is in with a role in each, and what the token may do."""

    name: str
    orgs: dict[str, str] = field(default_factory=dict)
    role: str = "write"

    def writes_to(self, owner: str) -> bool:
        """Whether it may change what belongs to `owner`."""
        return self.role == "write" and (owner == self.name or self.orgs.get(owner) in ("write", "admin"))


@dataclass
class Storage:
    """All of it; methods that change something do so under one lock."""

    accounts: dict[str, Account] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    collections: dict[str, list[str]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def create(self, repo_id: str, private: bool) -> None:
        """A new repository as the Hub makes it: one commit with one file."""
        with self.lock:
            self.repositories[repo_id] = repository = Repository(repo_id, private)
            repository.add(MAIN, Commit({".gitattributes": Blob(GITATTRIBUTES, False)}, None, "initial commit"))

    def readable(self, repo_id: str, account: Account | None) -> Repository:
        """The repository, unless it is missing or private; the answer does not tell which."""
        repository, owner = self.repositories.get(repo_id), repo_id.split("/")[0]
        allowed = account is not None and (owner == account.name or owner in account.orgs)
        if repository is None or (repository.private and not allowed):
            status, message = (404, "Repository not found") if account else (401, "Invalid username or password.")
            raise Refusal(status, message, "RepoNotFound")
        return repository

    def writable(self, repo_id: str, account: Account | None) -> Repository:
        """The repository, if the account may commit to it."""
        repository = self.readable(repo_id, account)
        if account is None or not account.writes_to(repo_id.split("/")[0]):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> str:
        """Applies the lines of a commit request; the new commit's name."""
        with self.lock:
            header, *operations = lines
            head = repository.sha(branch)
            if header["value"].get("parentCommit", head) != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repository.tree(branch))
            for operation in operations:
                kind, value = operation["key"], operation["value"]
                if kind == "file":
                    tree[value["path"]] = Blob(b64decode(value["content"]), False)
                elif kind == "lfsFile":
                    if value["oid"] not in self.large_files:
                        raise Refusal(400, f"Your push was rejected: missing LFS object {value['oid']}")
                    tree[value["path"]] = Blob(self.large_files[value["oid"]], True)
                elif tree.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            return repository.add(branch, Commit(tree, head, header["value"]["summary"]))
