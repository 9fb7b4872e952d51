"""The bundled set: big enough, small enough, lawful, and readable by every processor."""

import hashlib
import json
import random
import warnings

import pytest
import torch
from PIL import Image

from tests.families import VIDEO_FAMILIES, build
from transformers_qaig.data.default_set import FOLDER, load_default_set
from transformers_qaig.data.model_inputs import ModelInputs
from transformers_qaig.data.samples import load_samples
from transformers_qaig.data.video import open_video

RECORDS = [json.loads(line) for line in (FOLDER / "conversations.jsonl").read_text(encoding="utf-8").splitlines()]
CLIP_RECORDS = [json.loads(line) for line in (FOLDER / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
PICTURES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
CLIPS = [path for path in PICTURES if path.name.startswith("clip_")]
IMAGES = [path for path in PICTURES if path not in CLIPS]


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


def test_every_clip_is_used_and_has_some_frames_of_its_own_size() -> None:
    assert {record["video"] for record in CLIP_RECORDS} == {path.name for path in CLIPS}
    clips = [open_video(path) for path in CLIPS]
    assert len({clip[0].size for clip in clips}) == len(clips) >= 6
    assert all(4 <= len(clip) <= 16 and clip.fps == 2 for clip in clips)
    assert all(clip[0].tobytes() != clip[-1].tobytes() for clip in clips)


def test_the_files_are_those_that_were_drawn() -> None:
    for line in (FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_turns() -> None:
    for record in RECORDS + CLIP_RECORDS:
        assert 1 <= len(record["turns"]) <= 3
        for question, answer in record["turns"]:
            assert question.strip() == question != ""
            assert answer.strip() == answer != ""
            assert "<image>" not in question + answer
            assert "<video>" not in question + answer
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


def test_clips_are_added_for_a_model_that_takes_videos_and_change_nothing_for_others() -> None:
    pictures, clips = load_default_set(), load_default_set(with_videos=True)
    assert (len(pictures), len(clips)) == (len(RECORDS), len(RECORDS) + len(CLIP_RECORDS))
    assert clips[: len(pictures)] == pictures
    seed = next(seed for seed in range(1000) if _chosen(len(clips), seed) >= len(pictures))
    for family, is_clip in (("llava", False), ("internvl", True)):
        (sample,) = load_samples(None, build(family)[1], num_samples=1, seed=seed)
        assert sample.index == _chosen(len(clips if is_clip else pictures), seed)


def _chosen(count: int, seed: int) -> int:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[0]


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_clip_is_read(family: str) -> None:
    processor = build(family)[1]
    clips = load_default_set(with_videos=True)[len(RECORDS) :]
    assert len(load_samples(clips, processor, num_samples=8, seed=0, with_labels=True)) == 8


def test_clips_that_a_template_cannot_place_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    processor = build("internvl")[1]
    processor.chat_template = processor.chat_template.replace("<video>", "")
    assert load_samples(None, processor, num_samples=1, seed=0)
    assert (
        "The bundled clips are left out, because a clip was refused: the chat template drops the video" in caplog.text
    )


def test_without_images_for_a_text_model() -> None:
    tokenizer = build("llava")[1].tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = load_samples(None, tokenizer, num_samples=3, seed=0, inputs=ModelInputs(has_images=False))
    assert all(set(sample) == {"input_ids", "attention_mask"} for sample in samples)
