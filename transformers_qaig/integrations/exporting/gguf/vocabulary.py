"""Writes a tokenizer's vocabulary as GGUF, from tokenizer.json: byte-level BPE, and BPE as SentencePiece makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from ....utils.json_file import read_json
from ..refusals import Refusal
from ..saved_model import SavedModel

_LARGEST = 256 << 20
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {rf"{_START}\p{{N}}{_END}": "qwen2", rf"{_START}\p{{N}}{{1,3}}{_END}": "llama-bpe"}
"""Regular expression that splits a text → llama.cpp's name of it."""
_NONE = "no_vocab"


def refusals(saved: SavedModel) -> Iterator[Refusal]:
    """Yields why llama.cpp would split a text in another way."""
    found = _tokenizer_json(saved.folder)
    if found is not None and _kind(found) == "gpt2" and _pre(found) is None:
        yield Refusal(
            "the tokenizer splits a text by an expression that this export does not know in llama.cpp",
            "export as compressed-tensors or mlx",
        )


def notes(saved: SavedModel) -> Iterator[str]:
    """Yields a warning where the file holds no tokenizer."""
    found = _tokenizer_json(saved.folder)
    if found is None or _kind(found) == _NONE:
        why = (
            "there is no tokenizer.json"
            if found is None
            else f"llama.cpp has none of its kind ({found['model']['type']})"
        )
        yield f"The file holds no tokenizer, because {why}: a program must give it token ids."


def write_vocabulary(saved: SavedModel, writer: GGUFWriter, vocab_size: int) -> None:
    """Adds tokens, merges, special tokens and the chat template to a file's settings.

    Args:
        saved: the model.
        writer: of the file.
        vocab_size: rows of the embeddings.
    """
    found = _tokenizer_json(saved.folder)
    kind = _NONE if found is None else _kind(found)
    writer.add_tokenizer_model("none" if kind == _NONE else kind)
    if found is None or kind == _NONE:
        return
    tokens, types = _tokens(found, kind, vocab_size)
    writer.add_tokenizer_pre(_pre(found) or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind == "gpt2":
        merges = found["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    else:  # a merge counts by the rank of what it makes, and ranks follow ids
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_add_space_prefix(_adds_space(saved.folder))
    _write_special_tokens(saved, writer)
    template = saved.folder / "chat_template.jinja"
    if template.is_file() and template.stat().st_size < 1 << 20:
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _tokenizer_json(folder: Path) -> dict[str, Any] | None:
    try:
        found = read_json(folder / "tokenizer.json", _LARGEST)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("model"), dict) else None


def _kind(found: dict[str, Any]) -> str:
    """Returns llama.cpp's name of the kind of tokenizer."""
    if found["model"].get("type") != "BPE":
        return _NONE
    return "llama" if found["model"].get("byte_fallback") else "gpt2"


def _pre(found: dict[str, Any]) -> str | None:
    """Returns llama.cpp's name of how a text is split before merges; None if this export knows none."""
    if _kind(found) != "gpt2":
        return "default"
    step = found.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    expressions = [each["pattern"].get("Regex") for each in steps if each.get("type") == "Split"]
    byte_level = [each for each in steps if each.get("type") == "ByteLevel"]
    if len(steps) == 1 and len(byte_level) == 1 and byte_level[0].get("use_regex", True):
        return "gpt-2"
    if len(expressions) == 1 and len(byte_level) == 1 and len(steps) == 2:
        return _SPLITS.get(expressions[0])
    return None


def _tokens(found: dict[str, Any], kind: str, vocab_size: int) -> tuple[list[str], list[int]]:
    """Returns the text and type of every token, as many as the embeddings have rows."""
    tokens = {number: text for text, number in found["model"]["vocab"].items()}
    types = {number: _type(text, kind, found["model"].get("unk_token")) for number, text in tokens.items()}
    for added in found.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        if types.get(added["id"]) != TokenType.UNKNOWN:
            types[added["id"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    numbers = range(max(vocab_size, 1))
    return [tokens.get(n, f"[PAD{n}]") for n in numbers], [int(types.get(n, TokenType.UNUSED)) for n in numbers]


def _type(text: str, kind: str, unknown: str | None) -> TokenType:
    if text == unknown and kind == "llama":
        return TokenType.UNKNOWN
    is_byte = kind == "llama" and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _adds_space(folder: Path) -> bool:
    """Whether the tokenizer puts a space before a text."""
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a", add_special_tokens=False).tokens
    return bool(tokens) and tokens[0].startswith("▁")


def _write_special_tokens(saved: SavedModel, writer: GGUFWriter) -> None:
    tokenizer = Tokenizer.from_file(str(saved.folder / "tokenizer.json"))
    try:
        named = json.loads((saved.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        named = {}
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = named.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is not None:
            ids[name] = number
            getattr(writer, f"add_{name}_token_id")(number)
    encoded = tokenizer.encode("a").ids
    writer.add_add_bos_token("bos" in ids and encoded[:1] == [ids["bos"]])
    writer.add_add_eos_token("eos" in ids and encoded[-1:] == [ids["eos"]])
