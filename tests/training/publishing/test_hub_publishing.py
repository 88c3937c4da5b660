"""Publishing over real HTTP to a stand-in for the Hub: one commit or none, whatever goes wrong on the way."""

from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Fault, HubStandIn, Waits
from hub_stand_in_storage import Account, Blob, Commit
from huggingface_hub import HfApi

from gen_vla.training.publishing.hub_publishing import Destination, FileChange, Publication, read_repository, upload
from gen_vla.training.storage.hub_requests import HubError


REPO = "gen-vla/tiny"
CARD = "---\nlicense: mit\n---\n# Tiny\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two large files, one small one, and a card."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}\n")
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 300_000)
    return folder


def put(folder: Path, **options: Any) -> Publication:
    return upload(folder, Destination(REPO, **options))


def files(hub: HubStandIn, revision: str = "main") -> dict[str, bytes]:
    return {path: blob.content for path, blob in hub.storage.repositories[REPO].tree(revision).items()}


def state(hub: HubStandIn) -> Any:
    """Everything a reader of the repository can see; `None` if there is none."""
    repository = hub.storage.repositories.get(REPO)
    return repository and (dict(repository.branches), dict(repository.tags), repository.private)


def in_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- one commit
def test_a_new_repository_is_one_commit_with_every_file(hub: HubStandIn, folder: Path) -> None:
    done = put(folder, message="Two shards", tag="v1", private=True)
    repository = hub.storage.repositories[REPO]
    assert repository.history() == ["Two shards", "initial commit"]
    assert {path: content for path, content in files(hub).items() if path != ".gitattributes"} == in_folder(folder)
    large = {path for path, blob in repository.tree("main").items() if blob.lfs}
    assert large == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert (done.commit, done.made) == (repository.branches["main"], True)
    assert repository.tags == {"v1": done.commit}
    assert repository.private
    assert {(change.path, change.size, change.kind) for change in done.changes} == {
        (path.name, path.stat().st_size, "new") for path in folder.iterdir()
    }


def test_a_second_time_there_is_nothing_to_do(hub: HubStandIn, folder: Path) -> None:
    first = put(folder, private=True)
    hub.log.clear()
    again = put(folder, tag="v1")
    assert (again.commit, again.made) == (first.commit, False)
    assert {change.kind for change in again.changes} == {"unchanged"}
    assert hub.requests("PUT", "/storage/") == hub.requests("POST", "/commit/") == 0
    assert hub.storage.repositories[REPO].tags == {"v1": first.commit}
    assert hub.storage.repositories[REPO].private  # although --private was not repeated
    assert put(folder, tag="v1").made is False  # the same tag on the same commit is no conflict


def test_an_update_is_a_commit_on_top_that_deletes_what_is_no_longer_there(hub: HubStandIn, folder: Path) -> None:
    put(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "config.json").write_text("[]\n")  # as long as before
    (folder / "deep").mkdir()
    (folder / "deep" / "recipe.yaml").write_text("name: tiny\n")
    hub.log.clear()
    done = put(folder)
    assert hub.storage.repositories[REPO].history() == ["Publish tiny", "Publish tiny", "initial commit"]
    assert {path: content for path, content in files(hub).items() if path != ".gitattributes"} == in_folder(folder)
    assert done.changes == [
        FileChange("README.md", 28, "unchanged"),
        FileChange("config.json", 3, "changed"),
        FileChange("deep/recipe.yaml", 11, "new"),
        FileChange("model-00001-of-00002.safetensors", 300_000, "unchanged"),
        FileChange("model-00002-of-00002.safetensors", 300_000, "deleted"),
    ]
    assert hub.requests("PUT", "/storage/") == 0
    assert hub.requests("POST", "/commit/") == 1


def test_a_branch_of_its_own(hub: HubStandIn, folder: Path) -> None:
    first = put(folder)
    same = put(folder, branch="fp32")
    assert (same.commit, same.made) == (first.commit, False)
    assert hub.storage.repositories[REPO].branches == {"main": first.commit, "fp32": first.commit}
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\0" * 300_000)  # as long as before
    second = put(folder, branch="bf16", tag="v1-bf16")
    assert hub.storage.repositories[REPO].branches["main"] == first.commit
    assert hub.storage.repositories[REPO].branches["bf16"] == second.commit != first.commit
    assert files(hub, "v1-bf16")["model-00001-of-00002.safetensors"] == b"\0" * 300_000


def test_it_is_added_to_a_collection_once(hub: HubStandIn, folder: Path) -> None:
    hub.storage.collections["gen-vla/robots-1"] = ["gen-vla/other"]
    for _ in range(2):
        put(folder, collection="gen-vla/robots-1")
    assert hub.storage.collections["gen-vla/robots-1"] == ["gen-vla/other", REPO]


# ---- faults on the way
def test_a_server_in_trouble_for_a_while_is_asked_again(hub: HubStandIn, folder: Path, waits: Waits) -> None:
    hub.faults += [
        Fault("GET", "/whoami", status=429, times=1, headers={"Retry-After": "17"}),
        Fault("POST", "/repos/create", status=500, times=2),
        Fault("PUT", "/storage/", status=503, times=1),
        Fault("POST", "/commit/", status=502, times=1),
        Fault("POST", "/tag/", times=1),
    ]
    put(folder, tag="v1")
    assert set(files(hub, "v1")) == {*in_folder(folder), ".gitattributes"}
    assert waits.seconds[:3] == [17.0, 1.0, 2.0]
    assert len(waits.seconds) == 6
    assert sum(waits.seconds) < 30


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/whoami"), ("POST", "/preupload/"), ("PUT", "/storage/"), ("POST", "/commit/")]
)
@pytest.mark.parametrize("status", [429, 500, None])
def test_a_server_in_trouble_for_long_leaves_everything_as_it_was(method, path, status, hub, folder, waits):
    put(folder)
    before = state(hub)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"new" * 200_000)
    hub.log.clear()
    hub.faults.append(Fault(method, path, status=status))
    words = {429: "too many requests", 500: "HTTP 500", None: "no answer"}[status]
    with pytest.raises(HubError, match=rf"could not .*{words}"):
        put(folder)
    assert state(hub) == before
    assert 2 <= hub.requests(method, path) <= 6
    assert 7 <= sum(waits.seconds) <= 30
    hub.faults.clear()
    assert put(folder).made
    assert files(hub)["model-00001-of-00002.safetensors"] == b"new" * 200_000


def test_a_connection_cut_in_the_middle_is_picked_up_where_it_was(hub: HubStandIn, folder: Path) -> None:
    hub.faults.append(Fault("PUT", "/storage/", skip=1))  # the first file arrives, the second never does
    with pytest.raises(HubError, match=r"no answer .*; nothing was published, and files that arrived are not sent"):
        put(folder)
    assert hub.storage.repositories[REPO].history() == ["initial commit"]
    assert len(hub.storage.large_files) == 1
    hub.faults.clear()
    hub.log.clear()
    put(folder)
    assert hub.requests("PUT", "/storage/") == 1
    assert set(files(hub)) == {*in_folder(folder), ".gitattributes"}
    assert hub.storage.repositories[REPO].history() == ["Publish tiny", "initial commit"]


@pytest.mark.parametrize("status", [None, 504])
def test_a_lost_answer_makes_no_second_commit(status: int | None, hub: HubStandIn, folder: Path) -> None:
    hub.faults.append(Fault("POST", "/commit/", status=status, times=1, done=True))
    done = put(folder)
    assert hub.storage.repositories[REPO].history() == ["Publish tiny", "initial commit"]
    assert done.commit == hub.storage.repositories[REPO].branches["main"]
    assert hub.requests("POST", "/commit/") == 2


def test_somebody_elses_commit_is_not_overwritten(hub, folder, monkeypatch):
    put(folder)
    repository = hub.storage.repositories[REPO]
    (folder / "config.json").write_text('{"mine": 1}\n')
    original, theirs = hub.storage.commit, []

    def commit_after_theirs(*arguments: Any) -> str:
        if not theirs:
            tree = {**repository.tree("main"), "config.json": Blob(b'{"theirs": 1}\n', False)}
            theirs.append(repository.add("main", Commit(tree, repository.branches["main"], "Theirs")))
        return original(*arguments)

    monkeypatch.setattr(hub.storage, "commit", commit_after_theirs)
    with pytest.raises(HubError, match="somebody else committed meanwhile; nothing was published, run it again"):
        put(folder)
    assert repository.branches == {"main": theirs[0]}
    assert files(hub)["config.json"] == b'{"theirs": 1}\n'
    assert put(folder).made
    assert repository.history() == ["Publish tiny", "Theirs", "Publish tiny", "initial commit"]
    assert files(hub)["config.json"] == b'{"mine": 1}\n'


def test_a_tag_that_fails_is_named_beside_what_was_published(hub: HubStandIn, folder: Path) -> None:
    hub.faults.append(Fault("POST", "/tag/", status=500))
    with pytest.raises(HubError, match=r"published gen-vla/tiny as commit [0-9a-f]{40}, but could not tag .*again"):
        put(folder, tag="v1")
    hub.faults.clear()
    assert put(folder, tag="v1").made is False
    assert set(hub.storage.repositories[REPO].tags) == {"v1"}


def test_a_card_the_hub_does_not_take_stops_before_the_commit(hub: HubStandIn, folder: Path) -> None:
    (folder / "README.md").write_text("no front matter\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        put(folder)
    assert hub.storage.repositories[REPO].history() == ["initial commit"]


# ---- what is there, and who may change it
def test_a_repository_is_read_or_there_is_none(hub: HubStandIn, folder: Path) -> None:
    assert read_repository(HfApi(), REPO) is None
    first = put(folder, tag="v1", private=True).commit
    repository = read_repository(HfApi(), REPO)
    assert repository is not None
    assert (repository.private, repository.branches, repository.tags) == (True, {"main": first}, {"v1": first})
    assert repository.head("main") == repository.head("a branch to be made") == first
    hub.storage.accounts["hf_eve"] = Account("eve")
    assert read_repository(HfApi(token="hf_eve"), REPO) is None  # private: as if it were not there


@pytest.mark.parametrize(
    ("token", "account", "message"),
    [
        (None, None, r"could not check the token: there is no token; run `hf auth login`"),
        ("hf_wrong", None, r"could not check the token: the Hub does not accept the token .*Invalid user token"),
        ("hf_reader", Account("bob", {"gen-vla": "admin"}, "read"), "got a token of bob that may only read"),
        ("hf_other", Account("eve"), r"could not write to gen-vla/tiny: the token may not do this .*right"),
        ("hf_member", Account("kim", {"gen-vla": "read"}), r"could not write to gen-vla/tiny: the token may not do"),
    ],
)
def test_an_account_that_may_not_write_is_refused_at_once(token, account, message, hub, folder, monkeypatch):
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


def test_new_repositories_are_created_only_where_the_account_may(hub: HubStandIn, folder: Path) -> None:
    for owner, roles in (("someone", {}), ("readers", {"readers": "read"})):
        hub.storage.accounts["hf_ada"] = Account("ada", {"gen-vla": "write", **roles})
        message = rf"got {owner}/x, which does not exist, .*creates repositories of ada, gen-vla only"
        with pytest.raises(HubError, match=message):
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
def test_what_does_not_go_together_is_refused(options, message, hub, folder):
    put(folder, tag="v0")
    (folder / "config.json").write_text("1\n")
    put(folder, tag="v1")
    (folder / "config.json").write_text("2\n")
    hub.storage.collections["eve/robots"] = []
    before = state(hub)
    with pytest.raises(HubError, match=message):
        put(folder, **options)
    assert state(hub) == before
