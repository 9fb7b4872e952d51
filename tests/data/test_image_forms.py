"""Every form of an image, and every way in which it can be wrong."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.loading import conversation, encoded, one, same
from transformers_qaig.data.samples import load_samples


@pytest.fixture
def server(picture: Image.Image) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/cat.png" else 404)
            self.end_headers()
            if self.path == "/cat.png":
                self.wfile.write(encoded(picture, "PNG"))

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_every_form_of_an_image(processor: Any, picture: Image.Image, server: str, tmp_path: Path) -> None:
    png = encoded(picture, "PNG")
    path = tmp_path / "cat.png"
    path.write_bytes(png)
    array = np.asarray(picture)
    forms = [
        path,
        str(path),
        f"{server}/cat.png",
        "data:image/png;base64," + base64.b64encode(png).decode(),
        base64.b64encode(png).decode(),
        png,
        memoryview(png),
        {"bytes": png, "path": None},
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array.copy()).float() / 255,
        picture.convert("RGBA"),
    ]
    want = one([conversation(picture)], processor)
    for form in forms:
        assert same(one([conversation(form)], processor), want), type(form)
    for key in ("path", "url"):
        messages = conversation(picture)
        messages[0]["content"][0] = {"type": "image", key: str(path)}
        assert same(one([messages], processor), want)
    for others in ({}, {"path": "elsewhere.png"}):  # as an undecoded column of `datasets` has it
        messages[0]["content"][0] = {"type": "image", "bytes": png, **others}
        assert same(one([messages], processor), want)
    for source in ({"type": "base64", "data": base64.b64encode(png).decode()}, {"type": "url", "url": str(path)}):
        messages = conversation(picture)
        messages[0]["content"][0] = {"type": "image", "source": source}
        assert same(one([messages], processor), want)


def test_an_image_that_a_tokenizer_would_drop_is_refused(processor: Any, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"calibration sample 0 .* makes no pixels of the sample's images: give"):
        one([conversation(picture)], processor.tokenizer)


def test_transparency_is_laid_over_white(processor: Any) -> None:
    clear, white = Image.new("RGBA", (20, 20), (0, 0, 0, 0)), Image.new("RGB", (20, 20), "white")
    assert same(one([conversation(clear)], processor), one([conversation(white)], processor))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere/cat.png", "cannot be opened"),
        ("http://127.0.0.1:9/cat.png", "cannot be downloaded"),
        ("data:image/png,abc", "base64"),
        (b"not an image", r"cannot be decoded \(no image that PIL reads\)"),
        (np.zeros((5, 5, 7)), r"\[H, W, C\]"),
        (np.full((4, 4, 3), -1.0), "before the processor's normalisation"),
        (3.14, "not float"),
    ],
)
def test_a_bad_image_is_named_by_its_index(processor: Any, picture: Image.Image, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"sample 1 .*{message}"):
        load_samples([conversation(picture), conversation(image)], processor, num_samples=4, seed=0)


def test_a_truncated_file_is_named_by_its_index(processor: Any, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(encoded(picture, "PNG")[:2000])
    with pytest.raises(ValueError, match=r"sample 0 .*the image .*half\.png cannot be decoded"):
        one([conversation(path)], processor)
