"""The record of experts' widths in the files: written by expert, and compared with config.json on loading."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformers_qaig.formats.scheme import Plan, WeightScheme
from transformers_qaig.loading.width_record import KEY, check_widths, record_widths

STACK = "model.layers.0.mlp.experts"


def plan(*bits: int, projection: str = "up_proj") -> Plan:
    """Experts with these bits, named in the order of strings: 0, 1, 10, 11, 2, …"""
    paths = sorted(range(len(bits)), key=str)
    return {f"{STACK}.{expert}.{projection}": WeightScheme(bits[expert], 32) for expert in paths}


TWELVE = plan(2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6)


def file_with(folder: Path, metadata: dict[str, str]) -> str:
    file = folder / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, file, metadata)
    return str(file)


def test_widths_are_recorded_in_the_order_of_experts_and_of_projections() -> None:
    both = {**TWELVE, **plan(8, 4, projection="down_proj"), "model.layers.0.mlp.gate": WeightScheme(8, 32)}
    assert json.loads(record_widths(both)[KEY]) == ["84", "234567823456"]
    assert record_widths({"lm_head": WeightScheme(8, 32)}) == {}


def test_the_plan_that_was_saved_is_accepted(tmp_path: Path) -> None:
    check_widths(TWELVE, [file_with(tmp_path, record_widths(TWELVE))])


def test_two_experts_that_changed_places_are_named(tmp_path: Path) -> None:
    file = file_with(tmp_path, record_widths(plan(2, 4)))
    said = f"gives the experts in {STACK}.up_proj the bits '42', and {file} was saved with '24'"
    with pytest.raises(ValueError, match=re.escape(said)):
        check_widths(plan(4, 2), [file])


def test_another_number_of_projections_is_an_error(tmp_path: Path) -> None:
    file = file_with(tmp_path, record_widths(TWELVE))
    with pytest.raises(ValueError, match=r"the experts of 2 projections, and .* was saved with those of 1"):
        check_widths({**TWELVE, **plan(2, projection="down_proj")}, [file])


@pytest.mark.parametrize("text", ["[", "{}", '"24"'])
def test_a_record_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"`{KEY}` in the header of .* cannot be read"):
        check_widths(plan(2, 4), [file_with(tmp_path, {KEY: text})])


def test_files_of_an_earlier_release_have_no_record(tmp_path: Path) -> None:
    check_widths(TWELVE, [file_with(tmp_path, {"format": "pt"})])
