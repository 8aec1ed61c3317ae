"""A small server that answers the real client of the Hugging Face hub as the hub does, for one machine's tests."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_writes"
LARGE = ".safetensors"
"""Files of this kind are uploaded by the protocol of large files."""


@dataclass
class Hub:
    """The repositories by name, the requests so far, and the answer that all requests get instead (status, headers)."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refusal: tuple[int, dict[str, str]] | None = None
    altered: set[str] = field(default_factory=set)
    """Files that arrive with other bytes than stated."""

    def commit(self, name: str) -> str:
        """The newest commit: a hash of all files."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


def git_digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, body: bytes | None) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.refusal is not None:
            self._send(self.hub.refusal[0], b"{}", self.hub.refusal[1])
            return
        for pattern, act in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda _: self._json({"errors": [], "warnings": []})),
            (r"/api/models/([^/]+/[^/]+)/preupload/main", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/objects/(\w+)", self._object),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self._commit),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", self._info),
            (r"/([^/]+/[^/]+)/resolve/\w+/([^/]+)", self._file),
        ):
            found = re.fullmatch(pattern, path)
            if found is not None:
                writes = self.command in ("POST", "PUT") and "/objects/" not in path
                if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self._send(401, b'{"error": "Invalid username or password."}')
                    return
                if "models" in pattern and found[1] not in self.hub.repositories:
                    self._missing()
                    return
                act(body, *found.groups())  # type: ignore[operator]
                return
        known = path.split("/resolve/")[0].lstrip("/") in self.hub.repositories
        code = "RevisionNotFound" if known or "/revision/" in path else "RepoNotFound"
        self._send(404, b"{}", {"X-Error-Code": code})

    def _missing(self) -> None:
        self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        new = name not in self.hub.repositories
        self.hub.repositories.setdefault(name, {".gitattributes": b"*.safetensors filter=lfs"})
        self._json({"url": f"{self.hub.address}/{name}"}, 200 if new else 409)

    def _preupload(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, name: str) -> None:
        objects = [
            {
                **one,
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.address}/objects/{one['oid']}", "header": {}}},
            }
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, body: bytes, oid: str) -> None:
        assert sha256(body) == oid
        self.hub.objects[oid] = body
        self._json({})

    def _commit(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(name)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _info(self, _: bytes | None, name: str) -> None:
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                "blobId": git_digest(content),
                **(
                    {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}}
                    if path.endswith(LARGE)
                    else {}
                ),
            }
            for path, content in self.hub.repositories[name].items()
        ]
        self._json({"id": name, "sha": self.hub.commit(name), "siblings": siblings, "private": False, "tags": []})

    def _file(self, _: bytes | None, name: str, path: str) -> None:
        content = self.hub.repositories.get(name, {}).get(path)
        if content is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        digest = sha256(content) if path.endswith(LARGE) else git_digest(content)
        if path in self.hub.altered:
            content = bytes(len(content))
        self._send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": self.hub.commit(name)})

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[Hub]:
    """The server on a free port of this machine."""
    made = Hub()
    handler = type("Handler", (_Handler,), {"hub": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
