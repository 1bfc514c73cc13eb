"""Imitations on loopback: a package index and the few endpoints of a model hub that a download needs."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """What a server gives, what it was asked for and with which ``credentials``.

    ``cut`` bodies stop half-way; ``statuses`` override answers.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)

    def count(self, end: str) -> int:
        """How many requests for a body had a path with this end."""
        return sum(path.endswith(end) for path in self.asked)


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve on a free port of the loopback interface until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.asked.append(self.path.split("?")[0])
            served.credentials.append(self.headers.get("Authorization", ""))
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            data = served.files.get(path, b"")
            status = served.statuses.get(path, 200 if path in served.files else 404)
            self.send_response(status)
            for name, value in served.headers.get(path, {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and path in served.cut:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wheel(folder: Path, project: str, version: str, files: dict[str, bytes], requires_python: str = ">=3") -> Path:
    """A wheel with these files, as a packager would make it."""
    name = project.replace("-", "_")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\nRequires-Python: {requires_python}\n"
    metadata += "Requires-Dist: a-package-that-does-not-exist\n"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def index(served: Served, *wheels: Path) -> None:
    """Offer wheels as a package index does (PEP 503)."""
    pages: dict[str, str] = {}
    for path in wheels:
        project = path.name.split("-")[0].replace("_", "-")
        served.files[f"/files/{path.name}"] = path.read_bytes()
        pages[project] = pages.get(project, "") + f'<a href="/files/{path.name}">{path.name}</a>'
    for project, page in pages.items():
        served.files[f"/simple/{project}/"] = f"<!DOCTYPE html><html><body>{page}</body></html>".encode()
        served.headers[f"/simple/{project}/"] = {"Content-Type": "text/html"}


def hub(served: Served, repo: str, files: dict[str, bytes], revision: str = "main", kind: str = "models") -> None:
    """Offer a repository as the hub's API does: its listing at a revision, and each file at the commit."""
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    listing = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]
    for name in (revision, COMMIT):
        for path, data in ((f"revision/{name}", listing), (f"tree/{name}", json.dumps(tree).encode())):
            served.files[f"/api/{kind}/{repo}/{path}"] = data
            served.headers[f"/api/{kind}/{repo}/{path}"] = {"Content-Type": "application/json"}
    for name, data in files.items():
        path = f"{'' if kind == 'models' else f'/{kind}'}/{repo}/resolve/{COMMIT}/{name}"
        served.files[path] = data
        served.headers[path] = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
