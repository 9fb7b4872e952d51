"""A Hugging Face Hub for model repositories, on the loopback interface and in memory.

It speaks as much of the protocol as `push_to_hub` and `from_pretrained` use: creating a repository, committing small
files inline and large ones by LFS, listing and downloading them. Clients are other processes, because
`huggingface_hub` reads its settings when it is imported:

    with FakeHub() as hub:
        subprocess.run([sys.executable, "push.py"], env=os.environ | hub.environment(cache_folder))
        assert "README.md" in hub.repositories["tester/model"]
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

USER = "tester"
LARGE = (".safetensors", ".bin")  # stored by LFS

RepoFiles = dict[str, bytes]


class FakeHub:
    """The server; a context manager. `repositories` maps `user/name` to its files, `requests` lists what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, RepoFiles] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    def __enter__(self) -> "FakeHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables that make a new process use this Hub, with `cache` as its home."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_not_a_real_token",
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # large files go by plain LFS, the only transfer known here
            "NO_PROXY": "127.0.0.1",
        }

    def revision(self, repo: str) -> str:
        """A commit id: the digest of all files."""
        digest = hashlib.sha1()
        for name, data in sorted(self.repositories[repo].items()):
            digest.update(f"{name}\0{hashlib.sha1(data).hexdigest()}\0".encode())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr: `FakeHub.requests` has it."""

    def do_GET(self) -> None:
        path = self._path()
        if path == "/api/whoami-v2":
            self._answer({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if files := self._files(match[1]):
                siblings = [{"rfilename": name} for name in files]
                self._answer({"id": match[1], "sha": self.hub.revision(match[1]), "siblings": siblings, "tags": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
            if files := self._files(match[1]):
                self._tree(files, match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            if files := self._files(match[1]):
                self._download(match[1], files, match[2])
        else:
            self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or USER}/{asked['name']}"
            status = 409 if repo in self.hub.repositories else 200
            self.hub.repositories.setdefault(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self._answer({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, status)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            self._answer({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for entry in objects:
                if entry["oid"] not in self.hub.objects:
                    entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
            self._answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines() if line])
        else:
            self._missing("EntryNotFound")

    def do_PUT(self) -> None:
        oid, body = self._path().rsplit("/", 1)[1], self._body()
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.objects[oid] = body
            self._answer({})
        else:
            self._answer({"error": "content does not match its SHA-256"}, 400)

    def _commit(self, repo: str, entries: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repo]
        for value, key in ((entry["value"], entry["key"]) for entry in entries):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
        sha = self.hub.revision(repo)
        self._answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _tree(self, files: RepoFiles, folder: str | None) -> None:
        prefix = f"{folder}/" if folder else ""
        names = [name for name in files if name.startswith(prefix)]
        if folder and not names:
            self._missing("EntryNotFound")  # clients probe for optional folders and expect exactly this
        else:
            self._answer([{"type": "file", "path": n, "size": len(files[n]), "oid": "0" * 40} for n in names])

    def _download(self, repo: str, files: RepoFiles, name: str) -> None:
        headers = {"X-Repo-Commit": self.hub.revision(repo)}
        if name not in files:
            self._missing("EntryNotFound", headers)
            return
        data, status = files[name], 200
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self._answer(data, status, "application/octet-stream", headers)

    def _files(self, repo: str) -> RepoFiles | None:
        """The repository's files; None after answering that there is no such repository."""
        if repo not in self.hub.repositories:
            self._missing("RepoNotFound")
        return self.hub.repositories.get(repo)

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer({"error": code}, 404, headers={"X-Error-Code": code, **(headers or {})})

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self,
        content: Any,
        status: int = 200,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.requests.append(f"{self.command} {self._path()} {status}")
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
