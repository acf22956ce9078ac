"""A model hub on this machine: the few routes that huggingface_hub uses, with Range, gates and faults."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fake_registry import sha

COMMIT = "1" * 40
MOVED = "2" * 40
LFS_BYTES = 10_000  # files from this size on are LFS files, as large ones are on a real hub


@dataclass
class Hub:
    """What the hub holds: commit -> file name -> bytes; `head` is what "main" points to."""

    commits: dict[str, dict[str, bytes]]
    repo: str = "someone/tiny-model"
    head: str = COMMIT
    gated: bool = False
    token: str = "secret"
    cut_after: int | None = None  # drop the connection after this many bytes of a large file
    hold: threading.Event | None = None  # after half of a large file, wait for this
    corrupt: bool = False
    ignore_range: bool = False
    url: str = ""
    gets: list[tuple[str, str | None]] = field(default_factory=list)  # file, Range header
    auth: list[str | None] = field(default_factory=list)

    def downloads(self, name: str) -> list[str | None]:
        return [r for n, r in self.gets if n == name]


def serve(hub: Hub) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def commit(self, revision: str) -> str:
            return hub.head if revision == "main" else revision

        def answer(self, body: bool) -> None:
            hub.auth.append(self.headers.get("Authorization"))
            info = re.fullmatch(rf"/api/models/{hub.repo}/revision/([^/?]+)(\?.*)?", self.path)
            file = re.fullmatch(rf"/{hub.repo}/resolve/([^/]+)/([^?]+)", self.path)
            if info is None and file is None:
                return self.refuse(404, "RepoNotFound")
            commit = self.commit((info or file)[1])  # type: ignore[index]
            if commit not in hub.commits:
                return self.refuse(404, "RevisionNotFound")
            if info is not None:
                return self.describe(commit)
            if hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(401 if self.headers.get("Authorization") is None else 403, "GatedRepo")
            name = file[2]  # type: ignore[index]
            if name not in hub.commits[commit]:
                return self.refuse(404, "EntryNotFound")
            self.send_file(name, commit, hub.commits[commit][name], body)

        def describe(self, commit: str) -> None:
            siblings = []
            for name, data in hub.commits[commit].items():
                row: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": sha(data)[:40]}
                if len(data) >= LFS_BYTES:
                    row["lfs"] = {"sha256": sha(data), "size": len(data), "pointerSize": 134}
                siblings.append(row)
            text = json.dumps({"id": hub.repo, "sha": commit, "siblings": siblings, "gated": hub.gated}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def send_file(self, name: str, commit: str, data: bytes, body: bool) -> None:
            asked = self.headers.get("Range")
            etag = sha(data) if len(data) >= LFS_BYTES else sha(data)[:40]
            start = int(asked.split("=")[1].rstrip("-")) if asked and not hub.ignore_range else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return
            hub.gets.append((name, asked))
            if hub.corrupt and len(data) >= LFS_BYTES:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.pour(data[start:], large=len(data) >= LFS_BYTES)

        def pour(self, data: bytes, large: bool) -> None:
            if large and hub.cut_after is not None:
                self.wfile.write(data[: hub.cut_after])
                self.close_connection = True
                self.connection.close()
                return
            half = len(data) // 2
            self.wfile.write(data[:half])
            if large and hub.hold is not None:
                self.wfile.flush()
                hub.hold.wait(30)
            self.wfile.write(data[half:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
