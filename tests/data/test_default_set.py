"""The bundled set: big enough, small enough, lawful, and readable by every processor."""

import hashlib
import json
import warnings

import pytest
import torch
from PIL import Image

from tests.families import build
from transformers_qaig.data.default_set import FOLDER, load_default_set
from transformers_qaig.data.samples import load_samples

RECORDS = [json.loads(line) for line in (FOLDER / "conversations.jsonl").read_text(encoding="utf-8").splitlines()]
IMAGES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg", ".webp"))


def test_size() -> None:
    assert len(RECORDS) >= 128
    assert len(IMAGES) >= 96
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_every_image_is_used_and_every_one_opens() -> None:
    assert {record["image"] for record in RECORDS} == {path.name for path in IMAGES}
    sizes = set()
    for path in IMAGES:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 200, path
            assert max(image.size) <= 768, path
            sizes.add(image.size)
    assert len(sizes) > 40  # processors that tile or keep the aspect ratio must meet many shapes


def test_the_files_are_those_that_were_drawn() -> None:
    for line in (FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_turns() -> None:
    for record in RECORDS:
        assert 1 <= len(record["turns"]) <= 3
        for question, answer in record["turns"]:
            assert question.strip() == question != ""
            assert answer.strip() == answer != ""
            assert "<image>" not in question + answer
    lengths = sorted(len(answer.split()) for record in RECORDS for _, answer in record["turns"])
    assert lengths[0] == 1
    assert lengths[-1] > 60
    assert len({tuple(map(tuple, record["turns"])) for record in RECORDS}) > 0.95 * len(RECORDS)


def test_json_answers_are_json() -> None:
    asked = [turn for record in RECORDS for turn in record["turns"] if "JSON" in turn[0]]
    assert len(asked) >= 10
    for _, answer in asked:
        json.loads(answer)


def test_sources_and_licences_are_stated() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for needed in ("Apache-2.0", "public domain", "https://commons.wikimedia.org/wiki/File:Grace_Hopper.jpg"):
        assert needed in readme
    for path in IMAGES:
        if path.name.startswith("photograph"):
            assert path.name in readme


def test_the_image_comes_before_the_question() -> None:
    for conversation in load_default_set():
        assert [message["role"] for message in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        assert [part["type"] for part in conversation[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mllama", "gemma3"])
def test_is_what_none_means(family: str) -> None:
    model, processor = build(family)
    samples = load_samples(None, processor, num_samples=3, seed=0)
    assert len(samples) == 3
    with torch.no_grad():
        for sample in samples:
            assert model(**sample).logits.isfinite().all()


def test_without_images_for_a_text_model() -> None:
    tokenizer = build("llava")[1].tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = load_samples(None, tokenizer, num_samples=3, seed=0, is_vlm=False)
    assert all(set(sample) == {"input_ids", "attention_mask"} for sample in samples)
