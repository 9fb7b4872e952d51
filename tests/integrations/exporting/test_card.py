"""The card of an export: the metadata of its source, the format, and how a folder is opened."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import transformers_qaig
from tests.integrations.exporting.conftest import Quantized
from transformers_qaig.integrations.exporting.card import OPENING, write_card
from transformers_qaig.integrations.exporting.run import FORMATS
from transformers_qaig.report.card_name import MARK


def card(tmp_path: Path, text: str | None, notes: tuple[str, ...] = ()) -> str:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    if text is not None:
        (source / "README.md").write_text(text)
    saved: Any = SimpleNamespace(folder=source)
    write_card(saved, out, "mlx", ["mlx-vlm"], notes)
    return (out / "README.md").read_text()


def test_every_engine_of_a_format_says_how_it_opens_it() -> None:
    assert {name: tuple(engines) for name, engines in OPENING.items()} == {
        name: format.ENGINES for name, format in FORMATS.items()
    }


def test_our_card_keeps_what_was_done_and_loses_how_the_source_is_loaded(tmp_path: Path) -> None:
    head, facts = "library_name: transformers\nlicense: mit", "## What was done\n\nfacts\n"
    ours = f"---\n{head}\n---\n{MARK}# A model\n\n## How to load it\n\nold\n\n{facts}"
    found = card(tmp_path, ours, ("scales are rounded to float16",))
    assert found.startswith("---\nlibrary_name: mlx\nlicense: mit\n---\n# A model")
    assert "old" not in found
    assert "mlx_vlm.generate" in found
    assert found.index("- scales are rounded to float16") < found.index("## What was done\n\nfacts")


@pytest.mark.parametrize(("text", "kept"), [("# Somebody's card\n", "# Somebody's card"), (None, "## This export")])
def test_another_card_stays_as_it_is_and_none_is_no_error(tmp_path: Path, text: str | None, kept: str) -> None:
    found = card(tmp_path, text)
    assert found.startswith(kept)
    assert "without rounding them again." in found


@pytest.mark.parametrize(
    ("settings", "format", "engine", "told"),
    [
        ({"sym": True}, "compressed-tensors", "transformers", [True, True]),
        ({"overrides": {"*.down_proj": {"bits": 8}}}, "compressed-tensors", "vllm", [False, True]),
        ({"sym": True, "overrides": {"*.q_proj": {"bits": 8}}}, "compressed-tensors", "transformers", [True, False]),
        ({"bits": 3}, "gptq", "gptqmodel", [False, False]),
    ],
)
def test_only_engines_that_can_read_the_export_are_named(
    settings: dict, format: str, engine: str, told: list[bool], quantized: Quantized, tmp_path: Path
) -> None:
    transformers_qaig.export(quantized(**settings), tmp_path / "out", format=format, engine=engine)
    text = (tmp_path / "out/README.md").read_text()
    assert ["Transformers loads it" in text, "vllm serve FOLDER" in text] == told
