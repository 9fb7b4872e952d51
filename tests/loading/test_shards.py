"""Shards and their index are what they say, or an error names the file and the tensor."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from transformers_qaig import QAIGConfig
from transformers_qaig.loading.shards import check_index

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="session")
def in_shards(quantized: tuple[nn.Module, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    quantized[0].save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def folder(in_shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(in_shards, tmp_path / "model")
    return tmp_path / "model"


def shards(folder: Path) -> dict[str, str]:
    """Tensor → file."""
    return json.loads((folder / INDEX).read_text())["weight_map"]


def point(folder: Path, key: str, file: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][key] = file
    (folder / INDEX).write_text(json.dumps(index))


def add(file: Path, key: str, tensor: Tensor) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    save_file({**tensors, key: tensor}, file, metadata)


def test_shards_load(folder: Path) -> None:
    assert len(set(shards(folder).values())) > 2
    AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("ending", ["0.mlp.up_proj.weight_scale", "0.input_layernorm.weight"])
@pytest.mark.parametrize("rename", [str, lambda key: key.replace("language_model.model.", "model.language_model.")])
def test_a_tensor_that_is_stored_twice_is_named(folder: Path, ending: str, rename) -> None:
    where = shards(folder)
    key = next(key for key in where if key.endswith(ending))
    other = next(file for file in sorted(set(where.values())) if file != where[key])
    add(folder / other, rename(key), load_file(folder / where[key])[key] * 2)
    with pytest.raises(ValueError, match=rf"{ending} is stored twice: .*{where[key]}"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_an_index_that_has_a_tensor_twice_counts_the_last(folder: Path) -> None:
    where = shards(folder)
    key = next(iter(where))
    other = next(file for file in where.values() if file != where[key])
    for first, last in (("none.safetensors", where[key]), (where[key], other)):
        point(folder, key, last)
        whole = (folder / INDEX).read_text()
        (folder / INDEX).write_text(whole.replace('"weight_map": {', f'"weight_map": {{"{key}": "{first}",'))
        with nullcontext() if last == where[key] else pytest.raises(ValueError, match=f"{key} in {other}, which"):
            AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_an_index_that_names_another_shard_is_an_error(folder: Path, variant: str | None) -> None:
    where = shards(folder)
    key = next(iter(where))
    other = next(file for file in where.values() if file != where[key])
    point(folder, key, other)
    if variant:
        (folder / INDEX).rename(folder / f"model.safetensors.index.{variant}.json")
    with pytest.raises(ValueError, match=rf"{key} in {other}, which lacks it"):
        AutoModelForImageTextToText.from_pretrained(folder, variant=variant)


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        (lambda whole: "", "Expecting value"),
        (lambda whole: whole[: len(whole) // 2], "line"),
        (lambda whole: "[1]", "no JSON object"),
        (lambda whole: '{"metadata": {}}', "no object `weight_map`"),
        (lambda whole: whole.replace('"metadata"', '"other"'), "no object `metadata`"),
        (lambda whole: '{"metadata": {}, "weight_map": {}}', "`weight_map` is empty"),
        (lambda whole: '{"metadata": {}, "weight_map": {"a": ["b"]}}', r"names \['b'\] as a file for 'a'"),
        (lambda whole: '{"metadata": {}, "weight_map": {"a": null}}', "names None as a file for 'a'"),
    ],
)
def test_a_damaged_index_is_named(folder: Path, damaged: Callable[[str], str], problem: str) -> None:
    (folder / INDEX).write_text(damaged((folder / INDEX).read_text()))
    with pytest.raises(ValueError, match=rf"{folder / INDEX} .*{problem}.*Save or download the model again"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_damaged_index_of_an_unquantized_model_is_named(llava: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / INDEX).write_text('{"metadata": {}, "weight_map":')
    with pytest.raises(ValueError, match=rf"{tmp_path / INDEX} .*line 1.*Save or download the model again"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QAIGConfig(bits=4, recipe="rtn"))


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("", "no regular file"),
        ("none.safetensors", "missing"),
        ("../text", "cannot be read: .*header"),
        ("cut.safetensors", "cannot be read: .*not fully covered"),
        ("pickled.safetensors", "cannot be read: .*header"),
    ],
)
def test_an_index_of_an_unquantized_model_that_names_what_does_not_load_is_an_error(
    tmp_path: Path, llava: Path, file: str, problem: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "text").write_text("root:x:0:0:root:/root:/bin/sh")
    (folder / "cut.safetensors").write_bytes((llava / "model.safetensors").read_bytes()[:-1])
    torch.save({}, folder / "pickled.safetensors")
    shutil.copy(llava / "config.json", folder)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": file}}))
    with pytest.raises(ValueError, match=rf"{folder / INDEX} .*names '{file}' for 'a.weight', which .*{problem}"):
        AutoModelForImageTextToText.from_pretrained(folder, quantization_config=QAIGConfig(bits=4, recipe="rtn"))


def test_an_index_may_name_whatever_transformers_loads(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "inner" / "a.safetensors")
    header = b'  {"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'  # of another writer, with blanks
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    torch.save({"c": torch.ones(1)}, tmp_path / "c.bin")
    torch.save({"d": torch.ones(1)}, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    files = ["a.safetensors", "../b.safetensors", str(tmp_path / "c.bin"), "../d.bin"]
    named = ", ".join(f'"{Path(file).stem}": "{file}"' for file in files)
    (tmp_path / "inner" / INDEX).write_text(f'{{"metadata": {{}}, "weight_map": {{"a": "none", {named}}}}}')
    check_index({"pretrained_model_name_or_path": tmp_path, "subfolder": "inner"}, with_files=True)


def test_the_index_of_a_variant_is_the_one_that_transformers_writes(llava: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.save_pretrained(tmp_path, max_shard_size="100KB", variant="fp16")
    (tmp_path / "model.fp16.safetensors.index.json").write_text("")  # which no loader reads
    arguments = {"pretrained_model_name_or_path": tmp_path, "variant": "fp16"}
    check_index(arguments, with_files=True)
    (tmp_path / "model.safetensors.index.fp16.json").write_text("")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.fp16\.json lists .* is damaged"):
        check_index(arguments)


def test_the_index_is_found_in_a_subfolder_by_variant_and_by_the_config(tmp_path: Path) -> None:
    config = SimpleNamespace(transformers_weights="fp16.safetensors.index.json")
    cases: list[tuple[str, dict[str, Any]]] = [
        (f"inner/{INDEX}", {"pretrained_model_name_or_path": tmp_path, "subfolder": "inner"}),
        ("model.safetensors.index.fp16.json", {"pretrained_model_name_or_path": str(tmp_path), "variant": "fp16"}),
        ("fp16.safetensors.index.json", {"pretrained_model_name_or_path": tmp_path, "config": config}),
    ]
    (tmp_path / "inner").mkdir()
    for name, arguments in cases:
        check_index(arguments)
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=name):
            check_index(arguments)


def test_an_index_that_is_not_read_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    for index in (tmp_path / INDEX, tmp_path / "pickled" / INDEX):
        index.write_text("")
    (tmp_path / "model.safetensors").touch()
    config = SimpleNamespace(transformers_weights="model.safetensors")
    for arguments in (
        {"pretrained_model_name_or_path": tmp_path},
        {"pretrained_model_name_or_path": tmp_path, "config": config},
        {"pretrained_model_name_or_path": "owner/name"},
        {"pretrained_model_name_or_path": tmp_path / "pickled", "use_safetensors": False},
        {"pretrained_model_name_or_path": None},
        {},
    ):
        check_index(arguments)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("../outside.safetensors", "outside of"),
        ("/dev/zero", "outside of"),
        ("none.safetensors", "is missing"),
        ("fifo.safetensors", "no regular file"),
        ("config.json", "stored as safetensors"),
    ],
)
def test_an_index_that_names_what_is_no_shard_is_an_error(folder: Path, file: str, problem: str) -> None:
    os.mkfifo(folder / "fifo.safetensors")
    shutil.copy(folder / next(iter(shards(folder).values())), folder.parent / "outside.safetensors")
    key = next(iter(shards(folder)))
    point(folder, key, file)
    with pytest.raises(ValueError, match=f"({Path(file).name}.*{problem}|{problem}.*{Path(file).name}).*{key}"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_relative_folder_is_no_other_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in (".", "../model"):
        AutoModelForImageTextToText.from_pretrained(name)


def test_a_tied_head_is_stored_once(llava: Path, tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True}
    text = json.loads((llava / "config.json").read_text())
    text.update(config)
    text["text_config"].update(config)
    full = tmp_path / "full"
    shutil.copytree(llava, full)
    (full / "config.json").write_text(json.dumps(text))
    tensors = load_file(full / "model.safetensors")
    head = next(key for key in tensors if key.endswith("lm_head.weight"))
    del tensors[head]
    save_file(tensors, full / "model.safetensors", {"format": "pt"})
    settings = QAIGConfig(recipe="rtn", group_size=32, embedding_bits=4)
    folder = tmp_path / "packed"
    AutoModelForImageTextToText.from_pretrained(full, quantization_config=settings).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    table = next(key for key in tensors if key.endswith("embed_tokens.weight_scale"))
    add(folder / "model.safetensors", table, tensors[table] * float("nan"))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight_scale"):  # not the head's, which no file holds
        AutoModelForImageTextToText.from_pretrained(folder)
    add(folder / "model.safetensors", head.replace("weight", "weight_scale"), torch.flip(tensors[table], (0,)))
    with pytest.raises(ValueError, match=r"lm_head\.weight_scale is stored twice"):
        AutoModelForImageTextToText.from_pretrained(folder)
