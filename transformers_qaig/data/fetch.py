"""Reads the bytes behind a path or an address, within limits of size and time."""

import base64
import binascii
import http.client
import re
import stat
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

MAX_IMAGE_BYTES = 256 << 20
DOWNLOAD_TIMEOUT_S = 30.0  # without a byte
DOWNLOAD_DEADLINE_S = 120.0  # for the whole download
MAX_REDIRECTS = 5

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):(?=//)|(data|file):", re.IGNORECASE)
_BASE64_IMAGE = re.compile(r"(iVBORw0KGgo|/9j/[4-9A-Za-z+/]|R0lGOD|UklGR)[A-Za-z0-9+/]{80}")
"""How the first bytes of a PNG, JPEG, GIF and WebP look in base64. No path is so long without a dot."""
_SHOWN = 200  # characters of a path or an address in a message
_CHUNK = 1 << 16


def fetch(source: str, base_dir: Path | None = None, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Reads what `source` names.

    Args:
        source: an address (`http:`, `https:`, `data:`, `file:`), a path, or an image in base64.
        base_dir: the folder that relative paths start from (default: the working directory).
        max_bytes: more than this is refused.

    Raises:
        ValueError: it cannot be read, is no regular file, is too large or too slow. The message says what to do.
    """
    match = _SCHEME.match(source)
    scheme = (match.group(1) or match.group(2)).lower() if match else None
    if scheme is None and _BASE64_IMAGE.match(source):
        return _data_url(f"data:;base64,{source}", max_bytes)
    if scheme is None:
        return read_file(source, base_dir, max_bytes)
    if scheme in ("http", "https"):
        return _download(source, max_bytes)
    if scheme == "data":
        return _data_url(source, max_bytes)
    if scheme == "file":
        return read_file(_path_of(source), base_dir, max_bytes)
    raise ValueError(
        f"{_shown(source)} starts with '{scheme}://', which is not read: give a path or an address that starts with "
        "http:, https:, data: or file:"
    )


def read_file(path: str | Path, base_dir: Path | None = None, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Reads one regular file.

    Raises:
        ValueError: there is none, it is a folder, a device, a FIFO or a socket, or it is larger than `max_bytes`.
    """
    shown, data = _shown(path), b""
    try:
        path = Path(path).expanduser()
        path = path if base_dir is None else base_dir / path
        shown = _shown(path)
        status = path.stat()  # before opening: opening a FIFO waits for a writer, opening a device may act on it
        if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
            with open(path, "rb") as file:
                data = file.read(max_bytes + 1)
    except (OSError, RuntimeError, ValueError) as error:  # no home for `~user`; characters that no path can have
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"the file {shown} cannot be opened ({reason}): check the path; "
            f"relative paths start from {base_dir or Path.cwd()}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown} is {_kind(status.st_mode)}, not a file: give the path of a regular file")
    if max(status.st_size, len(data)) > max_bytes:
        raise _too_large(shown, max_bytes)
    return data


def _download(url: str, max_bytes: int) -> bytes:
    """Downloads in a thread, because a server that sends a byte now and then never meets the socket's own timeout."""
    outcome: list[bytes | Exception] = []
    deadline = time.monotonic() + DOWNLOAD_DEADLINE_S

    def work() -> None:
        try:
            outcome.append(_receive(url, max_bytes, deadline))
        except Exception as error:  # raised in the caller below
            outcome.append(error)

    thread = threading.Thread(target=work, name="image download", daemon=True)
    thread.start()
    thread.join(DOWNLOAD_DEADLINE_S)
    result = outcome[0] if outcome else TimeoutError(f"not done after {DOWNLOAD_DEADLINE_S:g} s")
    if isinstance(result, bytes):
        return result
    if not isinstance(result, (OSError, ValueError, http.client.HTTPException)):
        raise result
    raise ValueError(
        f"{_shown(url)} cannot be downloaded ({result or type(result).__name__}): check the address and the "
        "connection, or give a local file instead"
    ) from result


def _receive(url: str, max_bytes: int, deadline: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "transformers-qaig"})
    data = bytearray()
    with _opener().open(request, timeout=DOWNLOAD_TIMEOUT_S) as response:
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > max_bytes:
                raise _too_large("the answer", max_bytes)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {DOWNLOAD_DEADLINE_S:g} s")
        if response.length:  # bytes that the header announced did not come
            raise http.client.IncompleteRead(bytes(data), response.length)
    return bytes(data)


class _FewRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS


def _opener() -> urllib.request.OpenerDirector:
    """Makes an opener for HTTP and HTTPS only: the standard one follows redirects to FTP, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _FewRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _data_url(url: str, max_bytes: int) -> bytes:
    header, _, payload = url.partition(",")
    if not header.lower().endswith(";base64"):
        raise ValueError(f"a data: URL must be base64 ('data:image/png;base64,...'), this one starts {header[:40]!r}")
    if len(payload) // 4 * 3 > max_bytes:
        raise _too_large("the data: URL", max_bytes)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise ValueError(f"the data: URL is not valid base64 ({error})") from error


def _path_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{_shown(url)} names the host {parts.netloc[:40]!r}: a file: URL must start with 'file:///'")
    return urllib.request.url2pathname(parts.path)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _too_large(what: str, max_bytes: int) -> ValueError:
    return ValueError(f"{what} is larger than {max_bytes >> 20} MiB, the limit: give a smaller one")


def _shown(source: str | Path) -> str:
    text = str(source)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
