"""Reading what a path or an address names: regular files and answers of a known size only, and never for ever."""

import base64
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from transformers_qaig.data import fetch as rules
from transformers_qaig.data.fetch import fetch


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/hop/"):
            left = int(self.path[5:])
            self._answer(302, location=f"/hop/{left - 1}" if left else "/good")
        elif self.path == "/to_file":
            self._answer(302, location="file:///etc/hostname")
        elif self.path == "/to_ftp":
            self._answer(302, location="ftp://127.0.0.1/a")
        elif self.path == "/short":
            self._answer(200, length=100)
        elif self.path == "/drip":
            self._answer(200, length=10**6)
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            self._answer(200)

    def _answer(self, status: int, location: str | None = None, length: int = 4) -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(0 if location else length))
        self.end_headers()
        if not location:
            self.wfile.write(b"data")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_paths_and_addresses(server: str, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"data")
    for source in (
        str(tmp_path / "a b.png"),
        f"file://{tmp_path}/a%20b.png",
        f"FILE://localhost{tmp_path}/a%20b.png",
        f"{server}/good",
        f"{server}/hop/3",
        f"data:image/png;base64,{base64.b64encode(b'data').decode()}",
    ):
        assert fetch(source) == b"data", source
    assert fetch("a b.png", tmp_path) == b"data"


def test_devices_fifos_sockets_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, kind in {
            tmp_path: "a folder",
            tmp_path / "fifo": "a FIFO",
            tmp_path / "socket": "a socket",
            Path("/dev/zero"): "a device",
        }.items():
            for source in (str(path), f"file://{path}"):
                with pytest.raises(ValueError, match=f"is {kind}, not a file"):
                    fetch(source)


def test_too_much_is_not_read(server: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(4 << 20))
    large = "data:;base64," + base64.b64encode(bytes(2 << 20)).decode()
    for source in (str(tmp_path / "large"), large):
        with pytest.raises(ValueError, match="larger than 1 MiB, the limit"):
            fetch(source, max_bytes=1 << 20)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*the limit"):
        fetch(f"{server}/good", max_bytes=3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/hop/9", "redirect"),
        ("/to_file", "redirect|file"),
        ("/to_ftp", "ftp"),
        ("/short", r"IncompleteRead\(4 bytes read, 96 more expected\)"),
    ],
)
def test_downloads_that_go_wrong(server: str, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)cannot be downloaded .*({message}).*local file instead"):
        fetch(server + path)


def test_a_dripping_server_meets_the_deadline(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "DOWNLOAD_DEADLINE_S", 0.3)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"not done after 0\.3 s"):
        fetch(f"{server}/drip")
    assert time.monotonic() - start < 5  # dripping lasts 10 s


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://bucket/cat.png", "'s3://', which is not read"),
        ("ftp://host/cat.png", "'ftp://', which is not read"),
        ("file://host/cat.png", "names the host 'host'"),
        ("nowhere/cat.png", "cannot be opened.*check the path"),
        ("~nobody_of_that_name/cat.png", "cannot be opened"),
        ("a" * 5000, "cannot be opened"),
        ("a\0b", "cannot be opened.*null"),
        ("\udc00", "cannot be opened.*surrogates"),
        ("data:image/png;base64,ö", "not valid base64"),
    ],
)
def test_sources_that_cannot_be_read(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fetch(source)
    assert len(re.sub(re.escape(os.getcwd()), "", str(caught.value))) < 500
