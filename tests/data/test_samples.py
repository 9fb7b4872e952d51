"""Every form of calibration data, and every way in which it can be wrong."""

import base64
import builtins
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests import seeds
from tests.families import build
from transformers_qaig.data.samples import load_samples, token_mask


@pytest.fixture(scope="module")
def processor(tiny_vlm_path: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_vlm_path)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(seeds.rng().integers(0, 256, (40, 60, 3), dtype=np.uint8))


def conversation(image: Any, question: str = "how many cats are there ?", answer: str = "2") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def one(dataset: Any, processor: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    (sample,) = load_samples(dataset, processor, num_samples=1, seed=0, **kwargs)
    return sample


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


# ---- forms of a conversation


def test_a_conversation_is_what_the_processor_makes_of_it(processor: Any, picture: Image.Image) -> None:
    messages = conversation(picture)
    want = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    sample = one([messages], processor)
    assert same(sample, dict(want))
    assert sample["input_ids"][0, -1] == processor.tokenizer.eos_token_id  # the answer is in, no new turn is opened


def test_every_form_gives_the_same_sample(processor: Any, picture: Image.Image) -> None:
    question, answer = "how many cats are there ?", "2"
    placeholder = {"type": "image"}
    forms: list[Any] = [
        {"messages": conversation(picture)},
        {"messages": [*conversation(picture)[:1], {"role": "assistant", "content": answer}]},
        {
            "messages": [{"role": "user", "content": [placeholder, question]}, *conversation(picture)[1:]],
            "images": [picture],
        },
        {"messages": [{"role": "user", "content": question}, *conversation(picture)[1:]], "images": [picture]},
        {
            "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
            "image": picture,
        },
        {"texts": [{"user": question, "assistant": answer}], "images": [picture]},
        {"image": picture, "question": question, "answer": answer},
        {"image": picture, "question": question, "answers": [{"answer": answer}, {"answer": "3"}]},
        {"images": [picture], "query": question, "label": [answer]},
    ]
    want = one([conversation(picture)], processor)
    for form in forms:
        assert same(one([form], processor), want), form


def test_column_map(processor: Any, picture: Image.Image) -> None:
    record = {"image": "not this", "bild": picture, "frage": "how many cats are there ?", "antwort": "2"}
    columns = {"image": "bild", "prompt": "frage", "response": "antwort"}
    assert same(one([record], processor, columns=columns), one([conversation(picture)], processor))


def test_two_images_fill_their_placeholders_in_order(processor: Any) -> None:
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    record = {"messages": [{"role": "user", "content": "left <image> right <image> which ?"}], "images": [red, blue]}
    pixels = one([record], processor)["pixel_values"]
    assert pixels.shape[0] == 2
    assert pixels[0, 0].mean() > pixels[0, 2].mean()
    assert pixels[1, 0].mean() < pixels[1, 2].mean()


def test_bare_images_and_captions(processor: Any, picture: Image.Image) -> None:
    assert "pixel_values" in one([picture], processor)
    caption = one([{"image": picture, "caption": "a cat"}], processor)
    assert caption["input_ids"].shape[1] > one([picture], processor)["input_ids"].shape[1]


# ---- forms of an image


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
        png,
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
    for source in ({"type": "base64", "data": base64.b64encode(png).decode()}, {"type": "url", "url": str(path)}):
        messages = conversation(picture)
        messages[0]["content"][0] = {"type": "image", "source": source}
        assert same(one([messages], processor), want)


def test_transparency_is_laid_over_white(processor: Any) -> None:
    clear, white = Image.new("RGBA", (20, 20), (0, 0, 0, 0)), Image.new("RGB", (20, 20), "white")
    assert same(one([conversation(clear)], processor), one([conversation(white)], processor))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere/cat.png", "cannot be opened"),
        ("http://127.0.0.1:9/cat.png", "cannot be downloaded"),
        ("data:image/png,abc", "base64"),
        (b"not an image", "cannot be decoded"),
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


# ---- sets


def test_hugging_face_sets(processor: Any, picture: Image.Image) -> None:
    rows = {"image": [picture] * 6, "question": ["how many cats are there ?"] * 6, "answer": list("012345")}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    whole = load_samples(dataset, processor, num_samples=6, seed=0)
    assert [int(sample["input_ids"][0, -2]) for sample in whole] == [
        int(one([conversation(picture, answer=digit)], processor)["input_ids"][0, -2]) for digit in "012345"
    ]
    stream = load_samples(dataset.to_iterable_dataset(), processor, num_samples=6, seed=0)
    assert all(same(a, b) for a, b in zip(whole, stream, strict=True))
    assert len(load_samples(dataset.to_iterable_dataset(), processor, num_samples=2, seed=0)) == 2


def test_a_name_is_streamed_from_the_hub(processor: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return iter([conversation(picture)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("org/name", "org/name:test", "org/name:chart:validation"):
        load_samples(name, processor, num_samples=1, seed=0, token="secret")
    assert calls == [
        (("org/name",), {"split": "train", "streaming": True, "token": "secret"}),
        (("org/name",), {"split": "test", "streaming": True, "token": "secret"}),
        (("org/name", "chart"), {"split": "validation", "streaming": True, "token": "secret"}),
    ]


def test_a_name_that_cannot_be_loaded_says_what_to_do(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"org/name.*no network.*bundled default set"):
        one("org/name", processor)


def test_datasets_is_asked_for_only_when_needed(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    one(None, processor)
    with pytest.raises(ImportError, match="pip install datasets"):
        one("org/name", processor)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_with_paths_beside_it(processor: Any, picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    picture.save(tmp_path / "cat.png")
    record = {"image": "cat.png", "question": "how many cats are there ?", "answer": "2"}
    path = tmp_path / f"data{suffix}"
    path.write_text(json.dumps(record) + "\n" if suffix == ".jsonl" else json.dumps([record]), encoding="utf-8")
    assert same(one(str(path), processor), one([conversation(picture)], processor))


def test_processor_outputs_and_their_padding(processor: Any) -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "pixel_values": torch.zeros(2, 3, 8, 8),
    }
    sample = one([batch], processor)
    assert same(sample, batch)
    assert token_mask(sample).tolist() == [[True] * 4, [True, True, False, False]]
    assert token_mask(sample).dtype == torch.bool
    bare = one([{"input_ids": [5, 6, 7], "pixel_values": np.zeros((1, 3, 8, 8), np.float32)}], processor)
    assert bare["input_ids"].shape == (1, 3)
    assert token_mask(bare).all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"input_ids": torch.zeros(2, 3, 4)}, r"\[batch, tokens\]"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 4)}, "does not fit"),
        ({"input_ids": torch.ones(1, 3), "meta": object()}, "'meta'"),
    ],
)
def test_a_bad_processor_output_is_named_by_its_index(processor: Any, output: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"sample 0, a processor output.*{message}"):
        one([output], processor)


# ---- choice


def test_choice_is_by_seed_and_only_when_there_are_more(processor: Any, picture: Image.Image) -> None:
    data = [conversation(picture, answer=str(k)) for k in range(8)]

    def digits(num_samples: int, seed: int, dataset: Any = data) -> list[int]:
        return [
            int(s["input_ids"][0, -2]) for s in load_samples(dataset, processor, num_samples=num_samples, seed=seed)
        ]

    in_order = digits(8, 0)
    assert digits(20, 3) == in_order
    assert len(set(in_order)) == 8
    assert digits(4, 1) == digits(4, 1)
    assert digits(4, 1) != digits(4, 2)
    assert len(set(digits(4, 1))) == 4
    assert digits(2, 5, iter(data)) == digits(2, 5, tuple(data))  # a stream that its buffer holds


def test_long_samples_are_left_out_and_replaced(
    processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    data = [conversation(picture, answer="2 " * (1 + 40 * (k % 2))) for k in range(6)]
    with caplog.at_level(logging.INFO, "transformers.qaig"):
        samples = load_samples(data, processor, num_samples=3, seed=0, max_length=100)
    assert len(samples) == 3
    assert max(sample["input_ids"].shape[1] for sample in samples) <= 100
    with pytest.raises(ValueError, match="all 6 are longer than max_length=3"):
        load_samples(data, processor, num_samples=3, seed=0, max_length=3)


def test_max_pixels_shrinks_large_images_only() -> None:
    processor = build("qwen2_5_vl")[1]
    large, small = Image.new("RGB", (400, 200)), Image.new("RGB", (56, 28))
    full, small_grid = (one([conversation(im)], processor)["image_grid_thw"] for im in (large, small))
    shrunk, kept = (one([conversation(im)], processor, max_pixels=1600)["image_grid_thw"] for im in (large, small))
    assert shrunk.prod() < full.prod()
    assert torch.equal(kept, small_grid)


# ---- what the user is told


def test_one_decoded_sample_is_logged(processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "transformers.qaig"):
        load_samples([conversation(picture)], processor, num_samples=4, seed=0)
    assert "1 samples (4 were asked for), 1 with an image" in caplog.text
    assert "<image>×64" in caplog.text
    assert "<image><image>" not in caplog.text
    assert "how many" in caplog.text


def test_text_only_data_warns_for_a_vlm_only(
    processor: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    text = [{"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "2"}]
    load_samples([text, conversation(picture)], processor, num_samples=2, seed=0)
    load_samples([text], processor, num_samples=2, seed=0, is_vlm=False)
    assert "no image" not in caplog.text
    load_samples([text], processor, num_samples=2, seed=0)
    assert re.search(r"never sees its vision tokens.*image \+ text", caplog.text)
    caplog.clear()
    load_samples(["how many ?"], processor, num_samples=2, seed=0)
    assert "no image" in caplog.text


def test_a_sample_that_the_processor_refuses(processor: Any, picture: Image.Image) -> None:
    refused = conversation(picture, question="how many <image> ?")  # one image, two image tokens
    with pytest.raises(ValueError, match=r"sample 1 was refused by LlavaProcessor \(.*Remove or mend this sample"):
        load_samples([conversation(picture), refused], processor, num_samples=2, seed=0)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([], ValueError, "the dataset is empty"),
        (7, TypeError, "not int"),
        ({"input_ids": torch.ones(1, 3)}, TypeError, r"pass \[it\]"),
        ({"train": [], "test": []}, TypeError, "one split"),
        ([{"role": "user", "content": "hello"}], TypeError, "single conversation"),
        ([[]], ValueError, "sample 0 .*not empty"),
        ([[{"role": "user"}]], ValueError, "sample 0 .*needs 'role' and 'content'"),
        ([[{"role": "user", "content": [{"type": "audio"}]}]], ValueError, "sample 0 .*'audio'"),
        ([{"foo": 1}], ValueError, r"sample 0 .*columns="),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}],
            ValueError,
            "1 image placeholders .* 0 images",
        ),
        ([3.5], ValueError, "sample 0 .*not float"),
        (
            "nowhere/data.jsonl",
            ValueError,
            r"cannot be read: the file nowhere/data\.jsonl cannot be opened \(No such file",
        ),
        (Path("nowhere/data.jsonl"), ValueError, r"the file nowhere/data\.jsonl cannot be opened"),
        (__file__, ValueError, r"is a file of another kind than \.json and \.jsonl: open it, as with pandas"),
        ([{"foto": "x", "frage": "y"}], ValueError, r"CalibrationConfig\(columns="),
        ("./nowhere", ValueError, r"dataset='\./nowhere' cannot be loaded: there is no file or folder of this name"),
    ],
)
def test_bad_datasets(processor: Any, dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        one(dataset, processor)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"imge": "picture"}, "unknown part 'imge'.*Did you mean 'image'"),
        ({"image": "foto"}, r"columns\['image'\] is 'foto', but the sample has only \['picture'\]"),
    ],
)
def test_bad_column_maps(processor: Any, picture: Image.Image, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one([{"picture": picture}], processor, columns=columns)


def test_num_samples_must_be_positive(processor: Any) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        load_samples(None, processor, num_samples=0, seed=0)


# ---- processors that differ


def test_templates_that_take_only_parts_or_only_strings(picture: Image.Image) -> None:
    processor = build("llava")[1]
    turn = "{{ m['role'] }}: {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    parts = turn + "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
    strings = "{% if m['role'] == 'assistant' %}{{ 'assistant: ' + m['content'] }}{% else %}" + parts + "{% endif %}"
    samples = []
    for body in (parts, strings):
        processor.chat_template = "{% for m in messages %}" + body + "{% endfor %}"
        samples.append(one([conversation(picture, answer="seventeen")], processor))
        assert "seventeen" in processor.tokenizer.decode(samples[-1]["input_ids"][0])
    assert same(*samples)


def test_without_a_chat_template(picture: Image.Image) -> None:
    processor = build("paligemma")[1]
    processor.chat_template = None
    sample = one([conversation(picture, answer="seventeen")], processor)
    assert "seventeen" in processor.tokenizer.decode(sample["input_ids"][0])
    assert "pixel_values" in sample


def test_without_a_chat_template_and_an_image_token(picture: Image.Image) -> None:
    class Bare:
        def __call__(self, **kwargs: Any) -> Any:
            raise AssertionError("must not be called")

    with pytest.raises(ValueError, match="neither a chat template nor an image token"):
        one([conversation(picture)], Bare())
