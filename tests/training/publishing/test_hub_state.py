"""What the stand-in for the Hub has, who may change it, and in what a folder differs from it."""

from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn
from hub_stand_in_storage import Account
from huggingface_hub import HfApi

from gen_vla.training.publishing.hub_publishing import upload
from gen_vla.training.publishing.hub_state import Destination, FileChange, compare, read_repository
from gen_vla.training.storage.hub_requests import HubError


REPO = "gen-vla/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card and a large file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def put(folder: Path, **options: Any) -> str | None:
    return upload(folder, Destination(REPO, **options)).commit


def test_nothing_and_something(hub: HubStandIn, folder: Path) -> None:
    assert read_repository(HfApi(), REPO) is None
    first = put(folder, tag="v1", private=True)
    repository = read_repository(HfApi(), REPO)
    assert repository is not None
    assert (repository.private, repository.branches, repository.tags) == (True, {"main": first}, {"v1": first})
    assert repository.head("main") == repository.head("a branch to be made") == first
    hub.storage.accounts["hf_eve"] = Account("eve")
    assert read_repository(HfApi(token="hf_eve"), REPO) is None  # private: as if it were not there


def test_files_are_compared_by_content(hub: HubStandIn, folder: Path) -> None:
    api, revision = HfApi(), put(folder)
    (folder / "model.safetensors").write_bytes(b"weightS")  # as long as before
    (folder / "README.md").write_text("---\nlicense: MIT\n---\n")
    assert compare(api, folder, REPO, revision) == [
        FileChange("README.md", 21, "changed"),
        FileChange("model.safetensors", 7, "changed"),
    ]
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").unlink()
    (folder / "deep").mkdir()
    (folder / "deep" / "config.json").write_text("{}")
    assert compare(api, folder, REPO, revision) == [
        FileChange("README.md", 21, "deleted"),
        FileChange("deep/config.json", 2, "new"),
        FileChange("model.safetensors", 7, "unchanged"),
    ]
    assert compare(api, folder, REPO, None) == [
        FileChange("deep/config.json", 2, "new"),
        FileChange("model.safetensors", 7, "new"),
    ]


def state(hub: HubStandIn) -> Any:
    """Everything a reader of the repository can see."""
    repository = hub.storage.repositories[REPO]
    return dict(repository.branches), dict(repository.tags), repository.private


@pytest.mark.parametrize(
    ("token", "account", "message"),
    [
        (None, None, r"could not check the token: there is no token; run `hf auth login`"),
        ("hf_wrong", None, r"could not check the token: the Hub does not accept the token .*Invalid user token"),
        ("hf_reader", Account("bob", {"gen-vla": "admin"}, "read"), "got a token of bob that may only read"),
        (
            "hf_stranger",
            Account("eve"),
            r"could not write to gen-vla/tiny: the token may not do this .*right",
        ),
        ("hf_member", Account("kim", {"gen-vla": "read"}), r"could not write to gen-vla/tiny: the token may not do"),
    ],
)
def test_who_may_not_write_is_told_so_at_once(
    token: str | None,
    account: Account | None,
    message: str,
    hub: HubStandIn,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(folder)
    before = state(hub)
    (folder / "config.json").write_text("[]\n")
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    if token and account:
        hub.storage.accounts[token] = account
    hub.log.clear()
    with pytest.raises(HubError, match=message):
        put(folder)
    assert state(hub) == before
    assert hub.requests("PUT", "") == hub.requests("POST", "/commit/") == 0


def test_new_repositories_are_made_only_where_the_account_may(hub: HubStandIn, folder: Path) -> None:
    for owner, roles in (("someone", {}), ("readers", {"readers": "read"})):
        hub.storage.accounts["hf_ada"] = Account("ada", {"gen-vla": "write", **roles})
        with pytest.raises(HubError, match=rf"got {owner}/x, which does not exist, .*repositories of ada, gen-vla only"):
            upload(folder, Destination(f"{owner}/x"))
    assert hub.storage.repositories == {}
    upload(folder, Destination("ada/x"))
    assert set(hub.storage.repositories) == {"ada/x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"private": True}, "got --private for gen-vla/tiny, which is public; make it private in its settings first"),
        ({"branch": "v0"}, "got the revision v0, which is a tag of gen-vla/tiny; expected a branch"),
        ({"tag": "main"}, "got the tag main, which is a branch of gen-vla/tiny; choose another name"),
        ({"tag": "v0"}, "got the tag v0, which gen-vla/tiny already has on an older commit; choose another"),
        ({"tag": "v1"}, "got the tag v1, which gen-vla/tiny already has; choose another name"),
        ({"collection": "gen-vla/none"}, "could not find the collection gen-vla/none: not found"),
        ({"collection": "eve/robots"}, "got the collection eve/robots, expected one of ada, gen-vla"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: dict[str, Any], message: str, hub: HubStandIn, folder: Path
) -> None:
    put(folder, tag="v0")
    (folder / "config.json").write_text("1\n")
    put(folder, tag="v1")
    (folder / "config.json").write_text("2\n")
    hub.storage.collections["eve/robots"] = []
    before = state(hub)
    with pytest.raises(HubError, match=message):
        put(folder, **options)
    assert state(hub) == before
