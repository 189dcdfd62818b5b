"""A hub of one's own: the calls of huggingface_hub that sharing makes, over HTTP, with faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".png")


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None

    def commit(self, files: dict[str, bytes], to: str = "main", without: Collection[str] = ()) -> str:
        before = self.commits.get(self.refs.get(to, ""), {})
        after = {path: content for path, content in before.items() if path not in without} | files
        sha = hashlib.sha1(
            repr(sorted((k, hashlib.sha256(v).hexdigest()) for k, v in after.items())).encode()
        ).hexdigest()
        self.commits[sha], self.refs[to] = after, sha
        return sha


@dataclass
class Hub:
    """damaged    paths whose downloads have another last byte than was pushed
    dropped    paths whose next downloads end half-way, and how many times
    tokens     that were sent
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, verb: str) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.tokens.add(self.headers.get("authorization", ""))
        body = self._body()
        for method, pattern, handle in _ROUTES:
            if method == verb and (match := re.fullmatch(pattern, path)):
                handle(self, *match.groups(), query=query, body=body)
                return
        self._json({"error": f"{verb} {path} is not known here"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, **{"content-type": "application/json", **headers})

    def _bytes(self, content: bytes, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if length is not None and length != len(content):
            self.close_connection = True

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Answers with the hub's own refusals where there is nothing to see."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._json({"error": "Repository not found"}, 401, **{"X-Error-Code": "RepoNotFound"})
            return None
        if repository.is_gated:
            said = f"Access to model {name} is restricted."
            self._json({"error": said}, 403, **{"X-Error-Code": "GatedRepo", "X-Error-Message": said})
            return None
        found = repository.at(revision)
        if found is None:
            self._json({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        return found

    def _info(self, name: str, revision: str, *, query: Any, body: bytes) -> None:
        if (found := self._found(name, revision)) is None:
            return
        sha, files = found
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                **({"lfs": _lfs(content)} if path.endswith(LFS_SUFFIXES) else {}),
            }
            for path, content in files.items()
        ]
        self._json({"id": name, "sha": sha, "siblings": siblings, "tags": ["adapter-transformers"], "private": False})

    def _main(self, name: str, *, query: Any, body: bytes) -> None:
        self._info(name, "main", query=query, body=body)

    def _tree(self, name: str, revision: str, *, query: Any, body: bytes) -> None:
        if (found := self._found(name, revision)) is not None:
            files = found[1].items()
            entries = [(path, len(content), hashlib.sha1(content).hexdigest()) for path, content in files]
            self._json([{"type": "file", "path": path, "size": size, "oid": oid} for path, size, oid in entries])

    def _list(self, *, query: Any, body: bytes) -> None:
        text = query.get("search", [""])[0]
        found = [name for name in sorted(self.hub.repositories) if text in name]
        self._json(
            [{"id": name, "sha": self.hub.repositories[name].refs.get("main", ""), "tags": []} for name in found]
        )

    def _resolve(self, name: str, revision: str, path: str, *, query: Any, body: bytes) -> None:
        if (found := self._found(name, revision)) is None:
            return
        sha, files = found
        if path not in files:
            self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha}
        if path in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET" and self.hub.dropped.get(path, 0):
            self.hub.dropped[path] -= 1
            self._bytes(content[: len(content) // 2], length=len(content), **headers)
            return
        self._bytes(content, **headers)

    def _validate(self, *, query: Any, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self, *, query: Any, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            self._json({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
            return
        self.hub.repositories[name] = Repository()
        self.hub.repositories[name].commit({".gitattributes": b""})
        self._json({"url": f"{self.hub.address}/{name}", "id": name, "name": name})

    def _preupload(self, name: str, revision: str, *, query: Any, body: bytes) -> None:
        files = json.loads(body)["files"]
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def _batch(self, name: str, *, query: Any, body: bytes) -> None:
        def action(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.hub.address}/objects/{oid}"}}

        objects = json.loads(body)["objects"]
        self._json(
            {
                "transfer": "basic",
                "objects": [{"oid": o["oid"], "size": o["size"], "actions": action(o["oid"])} for o in objects],
            }
        )

    def _store(self, oid: str, *, query: Any, body: bytes) -> None:
        self.hub.objects[oid] = body
        self._bytes(b"")

    def _commit(self, name: str, revision: str, *, query: Any, body: bytes) -> None:
        files: dict[str, bytes] = {}
        deleted: list[str] = []
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
        sha = self.hub.repositories[name].commit(files, without=deleted)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _tag(self, name: str, revision: str, *, query: Any, body: bytes) -> None:
        repository, tag = self.hub.repositories[name], json.loads(body)["tag"]
        if tag in repository.refs:
            self._json({"error": "Tag reference exists already"}, 409)
            return
        repository.refs[tag] = repository.refs.get(revision, revision)
        self._json({})

    def _untag(self, name: str, tag: str, *, query: Any, body: bytes) -> None:
        del self.hub.repositories[name].refs[tag]
        self._json({})

    def _refs(self, name: str, *, query: Any, body: bytes) -> None:
        refs = self.hub.repositories[name].refs
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in refs.items() if tag != "main"
        ]
        self._json({"branches": [], "converts": [], "tags": tags})


def _lfs(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", _Handler._info),
    ("GET", r"/api/models", _Handler._list),
    ("GET", rf"/api/models/{_NAME}", _Handler._main),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", _Handler._tree),
    ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),
    ("HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler._preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/objects/(\w+)", _Handler._store),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", _Handler._commit),
    ("POST", rf"/api/models/{_NAME}/tag/([^/]+)", _Handler._tag),
    ("DELETE", rf"/api/models/{_NAME}/tag/([^/]+)", _Handler._untag),
    ("GET", rf"/api/models/{_NAME}/refs", _Handler._refs),
)
