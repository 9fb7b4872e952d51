"""The processor and the card go with a quantized model's weights wherever it is saved."""

import copy
import gc
import json
import logging
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.families import build, save
from tests.lifecycle import FAST, logits, packed
from transformers_qaig import QAIGConfig
from transformers_qaig.loading.source import Source
from transformers_qaig.report.card_name import MARK

RTN = {"bits": 4, "group_size": 32, "recipe": "rtn"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def quantized_from(folder: Path, **settings: object) -> torch.nn.Module:
    config = QAIGConfig(**(RTN | settings))
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)


def without_processor(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def answers(folder: Path) -> str:
    pipe = pipeline("image-text-to-text", model=str(folder))
    return pipe(text=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}], max_new_tokens=2)


@pytest.mark.parametrize("settings", [RTN, {"bits": 4, "recipe": "fast", **FAST}])
def test_pipeline_works_with_what_was_saved(llava: Path, tmp_path: Path, settings: dict) -> None:
    quantized_from(llava, **settings).save_pretrained(tmp_path / "one")
    assert answers(tmp_path / "one")
    assert MARK in (tmp_path / "one" / "README.md").read_text()
    for file in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "one" / file).read_bytes() == (llava / file).read_bytes()

    AutoModelForImageTextToText.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in (tmp_path / "two").iterdir()}
    assert (tmp_path / "one" / "README.md").read_text() == (tmp_path / "two" / "README.md").read_text()


def test_video_processors_and_more_templates_are_saved(tmp_path: Path) -> None:
    save("qwen2_5_vl", tmp_path / "full")
    templates = tmp_path / "full" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ tools }}")
    quantized_from(tmp_path / "full").save_pretrained(tmp_path / "packed")
    ours, theirs = (AutoProcessor.from_pretrained(tmp_path / name) for name in ("packed", "full"))
    assert ours.video_processor.to_dict() == theirs.video_processor.to_dict()
    assert (tmp_path / "packed" / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"


def test_a_processor_that_was_given_is_the_one_that_is_saved(llava: Path, tmp_path: Path) -> None:
    source = without_processor(llava, tmp_path / "source")
    processor = build("llava")[1]
    processor.tokenizer.chat_template = processor.chat_template = processor.chat_template + "{# mine #}"
    quantized_from(
        source, calibration={"processor": processor}, recipe="fast", dataset=FAST["dataset"]
    ).save_pretrained(tmp_path / "a")
    assert "{# mine #}" in AutoProcessor.from_pretrained(tmp_path / "a").chat_template
    quantized_from(source, calibration={"processor": str(llava)}).save_pretrained(tmp_path / "b")
    assert (
        AutoProcessor.from_pretrained(tmp_path / "b").chat_template
        == AutoProcessor.from_pretrained(llava).chat_template
    )


def test_weights_in_a_subfolder_have_their_processor_there_or_above(llava: Path, tmp_path: Path) -> None:
    without_processor(llava, tmp_path / "root" / "weights")
    AutoProcessor.from_pretrained(llava).save_pretrained(tmp_path / "root")
    for recipe in ("rtn", "fast"):
        config = QAIGConfig(bits=4, group_size=32, recipe=recipe, dataset=FAST["dataset"])
        model = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "root", subfolder="weights", quantization_config=config
        )
        model.save_pretrained(tmp_path / recipe)
        assert answers(tmp_path / recipe)


def test_a_missing_processor_is_logged_once_and_saving_goes_on(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = quantized_from(without_processor(llava, tmp_path / "source"))
    with caplog.at_level(logging.WARNING, "transformers.qaig"):
        model.save_pretrained(tmp_path / "one")
        model.save_pretrained(tmp_path / "two")
    told = [record.getMessage() for record in caplog.records if "No processor" in record.getMessage()]
    assert len(told) == 1
    assert str(tmp_path / "source") in told[0]
    assert (tmp_path / "two" / "README.md").is_file()


def test_what_the_user_saves_stays(llava: Path, tmp_path: Path) -> None:
    processor = build("llava")[1]
    processor.tokenizer.chat_template = processor.chat_template = processor.chat_template + "{# mine #}"
    model = quantized_from(llava)
    for order in ("before", "after"):
        folder = tmp_path / order
        if order == "before":
            processor.save_pretrained(folder)
            (folder / "README.md").write_text("mine")
        model.save_pretrained(folder)
        if order == "after":
            processor.save_pretrained(folder)
        assert "{# mine #}" in AutoProcessor.from_pretrained(folder).chat_template
    assert (tmp_path / "before" / "README.md").read_text() == "mine"


def test_copies_save_themselves(llava: Path, tmp_path: Path) -> None:
    model = quantized_from(llava)
    clones = {"copied": copy.deepcopy(model), "pickled": pickle.loads(pickle.dumps(model))}
    before = logits(model, llava)
    for parameter in model.lm_head.parameters():
        parameter.data.zero_()
    del model
    for name, clone in clones.items():
        clone.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "processor_config.json").is_file()
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert torch.equal(logits(again, llava), before)


def test_a_model_is_freed_as_soon_as_it_is_unreferenced(llava: Path) -> None:
    model = quantized_from(llava)
    seen = weakref.ref(model.get_submodule(packed(model)[0]))
    gc.collect()
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        gc.enable()


def test_a_dequantized_model_saves_as_any_other(llava: Path, tmp_path: Path) -> None:
    model = quantized_from(llava)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").is_file()
    model.dequantize().save_pretrained(tmp_path)
    beside = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors", *beside}
    assert answers(tmp_path)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_have_the_permissions_of_the_files_beside_them(
    llava: Path, tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        quantized_from(llava, calibration={"work_dir": tmp_path / "work"}, recipe="fast", **FAST).save_pretrained(
            tmp_path / "model", max_shard_size="300KB"
        )
    finally:
        os.umask(before)
    files = [*(tmp_path / "model").rglob("*"), *(tmp_path / "work").rglob("*.*")]
    assert len([file for file in files if file.suffix == ".safetensors"]) > 2
    assert {file.stat().st_mode & 0o777 for file in files if file.is_file()} == {mode}


def test_a_card_of_an_earlier_save_is_replaced(llava: Path, tmp_path: Path) -> None:
    for bits in (4, 3):
        quantized_from(llava, **RTN | {"bits": bits}).save_pretrained(tmp_path / "model")
        assert f"packed to {bits} bits" in (tmp_path / "model" / "README.md").read_text()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    quantized_from(llava, **RTN | {"bits": 8}).save_pretrained(tmp_path / "other")
    for folder in ("other", "model"):
        again.save_pretrained(tmp_path / folder)
        assert "packed to 3 bits" in (tmp_path / folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "file", "found"),
    [
        ("me/vlm", None, Source("me/vlm")),
        ("/models/vlm", "/models/vlm/model.safetensors", Source("/models/vlm")),
        ("/models/vlm", "/models/vlm/w/model.safetensors", Source("/models/vlm", subfolder="w")),
        (
            "me/vlm",
            f"/cache/models--me--vlm/snapshots/{COMMIT}/a/b/model.safetensors",
            Source("me/vlm", COMMIT, "/cache", "a/b"),
        ),
        ("gpt", f"/cache/models--gpt/snapshots/{COMMIT}/model.safetensors", Source("gpt", COMMIT, "/cache")),
    ],
)
def test_the_path_of_the_weights_shows_where_they_came_from(name: str, file: str | None, found: Source) -> None:
    assert Source.of(name, [file] if file else None) == found


@pytest.mark.parametrize("recipe", ["rtn", "fast"])
def test_what_opens_the_weights_opens_the_processor_and_is_not_kept(
    llava: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    asked: list[dict[str, Any]] = []

    def load(source: Source, **access: Any) -> Any:
        asked.append({"local_files_only": source.local_files_only, **access})
        return build("llava")[1]

    monkeypatch.setattr(Source, "of", lambda name, files, local: Source("me/vlm", COMMIT, local_files_only=local))
    monkeypatch.setattr(Source, "load_processor", load)
    monkeypatch.setattr(Source, "processor_files", load)
    config = QAIGConfig(bits=4, recipe=recipe, **FAST)
    model = AutoModelForImageTextToText.from_pretrained(
        llava, quantization_config=config, token="hf_secret", local_files_only=True, trust_remote_code=True
    )
    assert [(call["token"], call["local_files_only"]) for call in asked] == [("hf_secret", True)]
    assert all(call.get("trust_remote_code", True) for call in asked)
    assert b"hf_secret" not in pickle.dumps((model.config, model._qaig_beside))


@pytest.mark.parametrize(("name", "file"), [("/models/vlm", "/models/vlm/model.safetensors"), ("me/vlm", None)])
def test_nothing_is_downloaded_for_a_processor_that_is_named_if_nothing_may_be(name: str, file: str | None) -> None:
    assert Source.of(name, [file] if file else None, True).reach("me/other").local_files_only
    hub = Source.of("me/vlm", [f"/cache/models--me--vlm/snapshots/{COMMIT}/model.safetensors"])
    assert hub.reach(Path("me/other")) == Source("me/other", cache_dir="/cache")


def test_the_code_that_a_processor_names_comes_along(llava: Path, tmp_path: Path) -> None:
    for file in llava.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "processing_mine.py").write_text("")
    assert "processing_mine.py" not in Source(str(tmp_path)).processor_files()
    config = json.loads((tmp_path / "processor_config.json").read_text())
    config["auto_map"] = {"AutoProcessor": "processing_mine.Mine"}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert "processing_mine.py" in Source(str(tmp_path)).processor_files()
