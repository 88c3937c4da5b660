"""Data sets on the Hub: which commit is read, and what reading one over the network costs."""

import re
from collections.abc import Mapping

from huggingface_hub import HfApi

from gen_vla.training.storage.hub_requests import ask


HUB_DATA = "hf://datasets/"
_PATH = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<rest>/.*)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_path(path: str) -> tuple[str, str | None, str]:
    """`hf://datasets/OWNER/NAME[@REVISION][/FOLDER]` as ("OWNER/NAME", revision, "/FOLDER").

    Raises:
        ValueError: for another path.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError(f"got {path}, expected {HUB_DATA}OWNER/NAME[@REVISION], perhaps with a folder behind it")
    return found["name"], found["revision"], found["rest"] or ""


def pinned(path: str, known: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """A path at the commit that it means now, and the commit; a path of another kind as it is, and `None`.

    Args:
        known: commits by path, of an earlier start of the same run.

    Raises:
        HubError: where the Hub cannot be asked, or has no such data set or revision.
    """
    if not path.startswith(HUB_DATA):
        return path, None
    name, revision, rest = split_path(path)
    commit = (known or {}).get(path)
    if commit is None:
        commit = revision if revision and _COMMIT.fullmatch(revision) else _commit(name, revision)
    return f"{HUB_DATA}{name}@{commit}{rest}", commit


def _commit(name: str, revision: str | None) -> str:
    info = ask(f"find the data set {name} on the Hub", lambda: HfApi().dataset_info(name, revision=revision))
    return str(info.sha)
