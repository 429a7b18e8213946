"""
A Hugging Face Hub on 127.0.0.1 for tests: what ``huggingface_hub`` needs to make repositories, upload by commit and download
by resolve, over real HTTP. Repositories are lists of commits, a commit is a dict of files.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token"
OWNER = "tester"


class Repository:
    """:param private: Whether only the owner's token opens it."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {}, [])

    def commit(self, branch: str, files: dict[str, bytes], deleted: list[str]) -> str:
        """:return: Id of the new commit."""
        parent = self.commits.get(self.branches.get(branch, ""), {})
        content = {name: data for name, data in {**parent, **files}.items() if name not in deleted}
        oid = hashlib.sha1(f"{len(self.commits)}{branch}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = content, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """:return: Id of the commit that a branch or an id names."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class FakeHub(ThreadingHTTPServer):
    """The server; ``with running_hub() as hub`` starts it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = Lock()
        self.break_downloads = 0
        """How many of the next downloads of large files break off in the middle."""

    @property
    def endpoint(self) -> str:
        """Address for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo_id: str) -> dict[str, bytes]:
        """:return: Content of the main branch."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches["main"]]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """:return: A Hub that answers until the block ends."""
    hub = FakeHub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    # -- Answers -------------------------------------------------------------------------------------------------------

    def answer(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        """:param content: Bytes, or what becomes JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(self, status: int, code: str) -> None:
        """:param code: What the client makes its error of."""
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, repo_id: str) -> Repository | None:
        """:return: The repository, or None after a failure was answered: private ones do not exist for others."""
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and not self.is_owner):
            self.fail(401 if not self.is_owner else 404, "RepoNotFound")
            return None
        return repository

    # -- Requests ------------------------------------------------------------------------------------------------------

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, method in self.routes:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                method(self, body, *match.groups())
                return
        self.fail(404, "NoSuchRoute")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def whoami(self, body: bytes) -> None:
        self.answer(200 if self.is_owner else 401, {"name": OWNER, "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        data = json.loads(body)
        repo_id = f"{data.get('organization') or OWNER}/{data['name']}"
        if not self.is_owner:
            self.fail(401, "Unauthorized")
        elif repo_id in self.server.repositories:
            self.answer(409, {"url": f"{self.server.endpoint}/{repo_id}", "error": "exists"})
        else:
            private = bool(data.get("private")) or data.get("visibility") == "private"
            self.server.repositories[repo_id] = Repository(private)
            self.answer(200, {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id})

    def validate_yaml(self, body: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        if (repository := self.repository(repo_id)) is None:
            return
        if repository.resolve(revision) is None:
            self.fail(404, "RevisionNotFound")
            return
        # As the Hub's .gitattributes: binary files by LFS
        binary = (".safetensors", ".zip", ".png", ".mp4")
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(binary) else "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.server.endpoint}/upload/{entry['oid']}", "header": {}}}}
            for entry in json.loads(body)["objects"]
        ]
        content_type = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"transfer": "basic", "objects": objects}, content_type)

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.lfs_objects[oid] = body
        self.answer(200)

    def commit(self, body: bytes, repo_id: str, revision: str) -> None:
        if (repository := self.repository(repo_id)) is None:
            return
        files: dict[str, bytes] = {}
        deleted: list[str] = []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs_objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        oid = repository.commit(revision, files, deleted)
        self.answer(200, {"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, body: bytes, repo_id: str, revision: str | None = None) -> None:
        if (repository := self.repository(repo_id)) is None:
            return
        oid = repository.resolve(revision or "main")
        if oid is None:
            self.fail(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        self.answer(200, {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo_id: str, revision: str) -> None:
        if (repository := self.repository(repo_id)) is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            self.fail(404, "RevisionNotFound")
            return
        files = repository.commits[oid].items()
        self.answer(
            200,
            [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in files],
        )

    def resolve(self, body: bytes, repo_id: str, revision: str, name: str) -> None:
        if (repository := self.repository(repo_id)) is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            self.fail(404, "RevisionNotFound")
            return
        data = repository.commits[oid].get(name)
        if data is None:
            self.fail(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range") or "")
        status, total = 200, len(data)
        if start and int(start.group(1)) > 0:
            status, data = 206, data[int(start.group(1)) :]
            headers["Content-Range"] = f"bytes {start.group(1)}-{total - 1}/{total}"
        with self.server.lock:  # clients fetch several files at once
            breaks = self.command == "GET" and self.server.break_downloads > 0 and total > 1000
            self.server.break_downloads -= breaks
        if breaks:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.answer(status, data, headers)

    _repo = r"([\w.-]+/[\w.-]+)"
    routes = (
        (r"GET /api/whoami-v2", whoami),
        (r"POST /api/repos/create", create),
        (r"POST /api/validate-yaml", validate_yaml),
        (rf"POST /api/models/{_repo}/preupload/(.+)", preupload),
        (rf"POST /{_repo}\.git/info/lfs/objects/batch", lfs_batch),
        (r"PUT /upload/(\w+)", upload),
        (rf"POST /api/models/{_repo}/commit/(.+)", commit),
        (rf"GET /api/models/{_repo}", info),
        (rf"GET /api/models/{_repo}/revision/(.+)", info),
        (rf"GET /api/models/{_repo}/tree/([^/]+)/?", tree),
        (rf"(?:GET|HEAD) /{_repo}/resolve/([^/]+)/(.+)", resolve),
    )
