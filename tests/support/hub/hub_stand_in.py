"""A stand-in for the Hub: a real HTTP server on this machine's loopback address, with faults on demand.

    with HubStandIn() as hub:
        hub.storage.accounts["hf_token"] = Account("ada", {"gen-vla": "admin"})
        hub.faults.append(Fault("PUT", "/storage/", status=500, times=2))
        HfApi(endpoint=hub.endpoint, token="hf_token").create_repo("gen-vla/tiny")

It answers what uploading and loading a model or a data set ask for, whose names it does not tell apart;
`hub_stand_in_storage.py` keeps the files. Large files go to and come from addresses of another host name, as on the
Hub, which must never see a token.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_stand_in_storage import LFS_SUFFIXES, Account, Refusal, Repository, Storage


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repository"),
    ("GET", rf"/api/(?:models|datasets)/{REPO}", "model_info"),
    ("GET", rf"/api/(?:models|datasets)/{REPO}/revision/(?P<revision>.+)", "model_info"),
    ("GET", rf"/api/(?:models|datasets)/{REPO}/refs", "refs"),
    ("GET", rf"/api/(?:models|datasets)/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    ("POST", rf"/api/(?:models|datasets)/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/(?:models|datasets)/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/(?:models|datasets)/{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
    ("POST", rf"/api/(?:models|datasets)/{REPO}/tag/(?P<revision>[^/]+)", "create_tag"),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", "collection"),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", "add_to_collection"),
    ("POST", rf"/(?:datasets/)?{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/storage/(?P<sha256>[0-9a-f]{64})", "store"),
    ("GET", r"/storage/(?P<sha256>[0-9a-f]{64})", "fetch"),
    ("GET", rf"/(?:datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


@dataclass
class Fault:
    """What goes wrong with requests of a method whose path contains a text.

    Attributes:
        status: the answer instead of the right one; `None` cuts the connection.
        times: how often; requests after that are answered.
        skip: how many such requests are answered before.
        headers: of that answer.
        done: whether the request was carried out all the same, so that only the answer is lost.
    """

    method: str
    path: str
    status: int | None = None
    times: int = 10**6
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False


class Waits:
    """`time` for modules that sleep between attempts: notes how long they would have slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Sleeps a thousandth, so that the server gets its turn."""
        self.seconds.append(seconds)
        time.sleep(min(seconds, 1) / 1000)


class HubStandIn:
    """Serves while its `with` block runs; `log` holds method and path of every request."""

    def __init__(self) -> None:
        self.storage, self.faults, self.log = Storage(), list[Fault](), list[tuple[str, str]]()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets."""
        with self.storage.lock:
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times > 0:
                    fault.skip -= 1
                    if fault.skip < 0:
                        fault.times -= 1
                        return fault
        return None

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """The variables with which an interpreter talks to this Hub, and keeps what it learns in `home`."""
        cleared = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        return {**cleared, **settings, **quiet, **({"HF_TOKEN": token} if token else {})}

    def requests(self, method: str, path: str) -> int:
        """How many there were of a method whose path holds a text."""
        return sum(1 for other, found in self.log if other == method and path in found)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one piece; in two, the second waits 40 ms for the first to be acknowledged
    account: Account | None

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    @property
    def hub(self) -> HubStandIn:
        return self.server.hub  # type: ignore[attr-defined]

    @property
    def storage(self) -> Storage:
        return self.hub.storage

    def answer(self) -> None:
        """Finds the route, or the fault, and sends what it gives."""
        method, path = "GET" if self.command == "HEAD" else self.command, urlsplit(self.path).path
        self.hub.log.append((method, path))
        fault = self.hub.fault(method, path)
        if fault is not None and not fault.done:
            return self.fail(fault)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.account = self.who(path)
            reply = self.route(method, path)
        except Refusal as refusal:
            reply = self.refusal(refusal)
        return self.fail(fault) if fault is not None else self.send(*reply)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def route(self, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers; a route's named groups are the arguments of its method.

        That of a repository becomes the repository, if the account may read from it, or write to it.
        """
        for wanted, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                parts: dict[str, Any] = {key: unquote(part) for key, part in found.groupdict().items() if part}
                if "repo" in parts:
                    allowed = self.storage.readable if method == "GET" else self.storage.writable
                    parts["repo"] = allowed(parts["repo"], self.account)
                result = getattr(self, name)(**parts)
                return result if isinstance(result, tuple) else (200, json.dumps(result).encode(), {})
        raise Refusal(404, f"no such address: {method} {path}")

    def fail(self, fault: Fault) -> None:
        """Answers with the fault's status, or cuts the connection in the middle of the request."""
        length = int(self.headers.get("Content-Length") or 0)
        if fault.status is None:
            if not fault.done:
                self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if not fault.done:
            self.rfile.read(length)
        self.send(*self.refusal(Refusal(fault.status, "the server is in trouble"), fault.headers))

    def refusal(self, refusal: Refusal, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
        """As the Hub says no."""
        sent = {"X-Error-Message": refusal.message, **(headers or {})}
        if refusal.code:
            sent["X-Error-Code"] = refusal.code
        return refusal.status, json.dumps({"error": refusal.message}).encode(), sent

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Sends it, or the part that was asked for, without the body where only the head was."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and status == 200:
            first, whole = int(asked[1]), len(body)
            status, body = 206, body[first : int(asked[2]) + 1 if asked[2] else None]
            headers = {**headers, "Content-Range": f"bytes {first}-{first + len(body) - 1}/{whole}"}
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def who(self, path: str) -> Account | None:
        """Whose token came along; `None` without one, which is how the storage of large files must be asked."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        account = self.storage.accounts.get(header.removeprefix("Bearer "))
        if account is None or path.startswith("/storage/"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def json(self) -> Any:
        """The request's body."""
        return json.loads(self.body)

    # ---- accounts, repositories, collections

    def whoami(self) -> Any:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.account.orgs.items()]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.account.role}}
        return {"type": "user", "name": self.account.name, "orgs": orgs, "auth": token}

    def validate_yaml(self) -> Any:
        front = re.match(r"---\n(.*?)\n---", self.json()["content"], re.DOTALL)
        if front and isinstance(yaml.safe_load(front[1]), dict):
            return {"errors": [], "warnings": []}
        return 400, json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode(), {}

    def create_repository(self) -> Any:
        asked = self.json()
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or self.account.name
        if not self.account.writes_to(owner):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        private = asked.get("private", asked.get("visibility") == "private")
        name = f"{owner}/{asked['name']}"
        address = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.storage.repositories:  # the Hub tells where it is
            return 409, json.dumps({"error": "You already created this model repo", **address}).encode(), {}
        self.storage.create(name, private)
        return address

    def model_info(self, repo: Repository, revision: str = "main") -> Any:
        files = [{"rfilename": path} for path in sorted(repo.tree(revision))]
        return {"id": repo.name, "private": repo.private, "sha": repo.sha(revision), "siblings": files, "tags": []}

    def refs(self, repo: Repository) -> Any:
        branches, tags = (
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]
            for kind, names in (("heads", repo.branches), ("tags", repo.tags))
        )
        return {"branches": branches, "tags": tags, "converts": []}

    def create_branch(self, repo: Repository, branch: str) -> Any:
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.sha(self.json().get("startingPoint", "main"))
        return {}

    def create_tag(self, repo: Repository, revision: str) -> Any:
        tag = self.json()["tag"]
        if tag in repo.tags:
            raise Refusal(409, f"Tag already exists: {tag}")
        repo.tags[tag] = repo.sha(revision)
        return {}

    def collection(self, slug: str) -> Any:
        if slug not in self.storage.collections:
            raise Refusal(404, "Collection not found")
        ids = self.storage.collections[slug]
        items = [{"_id": str(place), "id": item, "type": "model", "position": place} for place, item in enumerate(ids)]
        facts = {"position": 0, "private": False, "theme": "green", "upvotes": 0, "items": items}
        owner = {"type": "org", "name": slug.split("/")[0]}
        return {"slug": slug, "title": slug, "owner": owner, "lastUpdated": "2025-01-01T00:00:00.000Z", **facts}

    def add_to_collection(self, slug: str) -> Any:
        item = self.json()["item"]["id"]
        if not (self.account and self.account.writes_to(slug.split("/")[0])):
            raise Refusal(403, "You cannot change this collection")
        if item in self.storage.collections[slug]:
            raise Refusal(409, "Item already in collection")
        self.storage.collections[slug].append(item)
        return self.collection(slug)

    # ---- files

    def storage_address(self, sha256: str) -> str:
        return f"http://localhost:{self.hub.port}/storage/{sha256}"

    def tree(self, repo: Repository, revision: str, folder: str = "") -> Any:
        """All files below a folder; or those in it, and the folders in it."""
        whole = "true" in parse_qs(urlsplit(self.path).query.lower()).get("recursive", [])
        begin, listed, folders = f"{folder}/" if folder else "", [], set()
        for path, blob in sorted(repo.tree(revision).items()):
            below = path.removeprefix(begin).partition("/")
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
            if path.startswith(begin) and (whole or not below[1]):
                listed.append(entry)
            elif path.startswith(begin):
                folders.add(begin + below[0])
        if folder and not listed and not folders:
            raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        return listed + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]

    def preupload(self, repo: Repository, revision: str) -> Any:
        files = []
        for path in (file["path"] for file in self.json()["files"]):
            blob = repo.tree(revision).get(path)
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = (blob.sha256 if blob.lfs else blob.oid) if blob else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, repo: Repository) -> Any:
        objects = []
        for entry in self.json()["objects"]:
            known = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.storage.large_files:
                known["actions"] = {"upload": {"href": self.storage_address(entry["oid"])}}
            objects.append(known)
        return {"transfer": "basic", "objects": objects}

    def store(self, sha256: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        self.storage.large_files[sha256] = self.body
        return {}

    def fetch(self, sha256: str) -> Any:
        return 200, self.storage.large_files[sha256], {"ETag": f'"{sha256}"', "Content-Type": "binary/octet-stream"}

    def commit(self, repo: Repository, revision: str) -> Any:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        sha = self.storage.commit(repo, revision, lines)
        return {"commitUrl": f"{self.hub.endpoint}/{repo.name}/commit/{sha}", "commitOid": sha}

    def resolve(self, repo: Repository, revision: str, path: str) -> Any:
        commit, blob = {"X-Repo-Commit": repo.sha(revision)}, repo.tree(revision).get(path)
        if blob is None:
            status, body, headers = self.refusal(Refusal(404, f"Entry not found: {path}", "EntryNotFound"))
            return status, body, {**headers, **commit}
        if blob.lfs:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return 302, b"", {**commit, **linked, "Location": self.storage_address(blob.sha256)}
        return 200, blob.content, {**commit, "ETag": f'"{blob.oid}"', "Content-Type": "text/plain"}
