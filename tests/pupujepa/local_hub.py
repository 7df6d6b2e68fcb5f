"""A model hub on the loopback address for the real huggingface_hub; repositories are folders of commits."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class LocalHub:
    """Repositories with commits and branches, and the requests so far.

    Args:
        commits: "owner/name" -> commit -> folder of the files at that commit.
        branches: "owner/name" -> branch -> commit; may be changed while the hub serves.
    """

    def __init__(self, commits: Mapping[str, Mapping[str, Path]], branches: Mapping[str, dict[str, str]]) -> None:
        self.commits = commits
        self.branches = branches
        self.downloads: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers and body for a request's path."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, (kind, revision) = "/".join(parts[2:4]), parts[4:6]
            return self._described(repository, kind, revision)
        repository, revision, inside = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        file = self.commits[repository][revision] / inside
        content = file.read_bytes()
        headers = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return 200, headers, content

    def _described(self, repository: str, kind: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if repository not in self.commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = self.branches[repository].get(revision, revision)
        if commit not in self.commits[repository]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.commits[repository][commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if kind == "tree":
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, path in zip(names, files, strict=True)
            ]
            return 200, {}, json.dumps(listing).encode()
        siblings = [{"rfilename": name} for name in names]
        return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()


@contextmanager
def serving(hub: LocalHub) -> Iterator[str]:
    """Serves the hub and yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(head_only=True)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                hub.downloads.append(self.path)
            self._send(head_only=False)

        def _send(self, *, head_only: bool) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not head_only:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
