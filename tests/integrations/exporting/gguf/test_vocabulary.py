"""A tokenizer as GGUF holds it: its kind, how it splits a text, types of tokens, and special ones."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

gguf = pytest.importorskip("gguf")
vocabulary = pytest.importorskip("transformers_qaig.integrations.exporting.gguf.vocabulary")

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's numbers of the types of tokens."""
QWEN2, LLAMA = vocabulary._SPLITS


def byte_level(*splits: str) -> Tokenizer:
    """A tokenizer as GPT-2's, or one that splits a text by other expressions."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<image>"])
    return tokenizer


def sentence_piece(prefix: bool = True) -> Tokenizer:
    """A tokenizer as Llama 2's."""
    words = {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "▁a": 4}
    model = models.BPE(words, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if prefix:
        tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def saved(folder: Path, tokenizer: Tokenizer, **named: Any) -> Any:
    tokenizer.save(str(folder / "tokenizer.json"))
    if named:
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return SimpleNamespace(folder=folder)


def written(model: Any, rows: int) -> dict[str, Any]:
    """What the file says of the tokenizer, without the common beginning of the names."""
    writer = gguf.GGUFWriter(None, "llama")
    vocabulary.write_vocabulary(model, writer, rows)
    fields = {name: field.value for part in writer.kv_data for name, field in part.items()}
    return {name.removeprefix("tokenizer."): value for name, value in fields.items() if name.startswith("tokenizer.")}


def test_every_row_of_the_embeddings_has_a_token_and_a_type(tmp_path: Path) -> None:
    found = written(saved(tmp_path, byte_level()), 8)
    assert (found["ggml.model"], found["ggml.pre"], found["ggml.merges"]) == ("gpt2", "gpt-2", ["a b"])
    assert found["ggml.tokens"] == ["a", "b", "ab", "<s>", "</s>", "<image>", "[PAD6]", "[PAD7]"]
    assert found["ggml.token_type"] == [NORMAL, NORMAL, NORMAL, CONTROL, CONTROL, USER, UNUSED, UNUSED]


def test_special_tokens_are_those_that_the_configuration_names_and_the_vocabulary_has(tmp_path: Path) -> None:
    model = saved(tmp_path, byte_level(), bos_token="<s>", eos_token={"content": "</s>"}, pad_token="<none>")
    found = written(model, 6)
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (3, 4)
    assert found.keys().isdisjoint({"ggml.padding_token_id", "ggml.unknown_token_id"})
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (False, False)


def test_what_the_tokenizer_puts_around_a_text_the_file_does_too(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    found = written(saved(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>"), 6)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (True, False)


@pytest.mark.parametrize(("split", "name"), [(QWEN2, "qwen2"), (LLAMA, "llama-bpe")])
def test_known_splits_have_llama_cpps_names(tmp_path: Path, split: str, name: str) -> None:
    model = saved(tmp_path, byte_level(split))
    assert written(model, 6)["ggml.pre"] == name
    assert list(vocabulary.refusals(model)) == []


@pytest.mark.parametrize("splits", [(r"\d",), (QWEN2, r"\d")])
def test_an_unknown_split_is_refused_with_another_format(tmp_path: Path, splits: tuple[str, ...]) -> None:
    (refusal,) = vocabulary.refusals(saved(tmp_path, byte_level(*splits)))
    assert "does not know in llama.cpp" in refusal.reason
    assert "mlx" in refusal.remedy


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces_have_bytes_an_unknown_token_and_scores_by_rank(tmp_path: Path, prefix: bool) -> None:
    model = saved(tmp_path, sentence_piece(prefix))
    found = written(model, 6)
    assert (found["ggml.model"], found["ggml.pre"]) == ("llama", "default")
    assert found["ggml.token_type"] == [UNKNOWN, BYTE, NORMAL, NORMAL, NORMAL, CONTROL]
    assert found["ggml.scores"] == [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert found["ggml.add_space_prefix"] == prefix
    assert "ggml.merges" not in found
    assert list(vocabulary.refusals(model)) == list(vocabulary.notes(model)) == []


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    model = saved(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} ü", encoding="utf-8")
    assert written(model, 6)["chat_template"] == "{{ messages }} ü"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no tokenizer.json"),
        ("{", "there is no tokenizer.json"),
        ("[]", "there is no tokenizer.json"),
        ('{"model": {"type": "WordPiece"}}', "llama.cpp has none of its kind (WordPiece)"),
    ],
)
def test_without_a_tokenizer_that_llama_cpp_has_the_file_says_so(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    model = SimpleNamespace(folder=tmp_path)
    assert written(model, 6) == {"ggml.model": "none"}
    (note,) = vocabulary.notes(model)
    assert reason in note
    assert list(vocabulary.refusals(model)) == []
