"""What an engine compares with the headers of a folder's files, which only the names of config.json tell."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformers_qaig.formats.scheme import Plan, Rotation, WeightScheme
from transformers_qaig.integrations.engines.saved_records import check_records
from transformers_qaig.loading.rotation_record import record_rotations
from transformers_qaig.loading.width_record import KEY, record_widths

LINEAR, STACK = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts"
W4, W3 = WeightScheme(4, 32), WeightScheme(3, 32)
ROTATED = replace(W4, rotation=Rotation(32, 1))
SAVED: Plan = {
    LINEAR: ROTATED,
    **{f"{STACK}.{expert}.down_proj": W3 if expert in (0, 2) else W4 for expert in range(4)},
    **{f"{STACK}.{expert}.up_proj": W4 for expert in range(4)},
}
COMPACT: Plan = {
    LINEAR: ROTATED, f"{STACK}.0,2.down_proj": W3, f"{STACK}.1,3.down_proj": W4, f"{STACK}.*.up_proj": W4
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    metadata = record_rotations(SAVED) | record_widths(SAVED)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata)
    return tmp_path


def test_the_plan_that_was_saved_is_accepted(folder: Path) -> None:
    check_records(COMPACT, str(folder))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({LINEAR: W4}, r"no rotation, and its weight in .* was saved with the rotation \[32, 1\]"),
        ({LINEAR: replace(W4, rotation=Rotation(32, 2))}, r"was saved with the rotation \[32, 1\]"),
        ({f"{STACK}.0,2.down_proj": W4, f"{STACK}.1,3.down_proj": W3}, "'4343', and .* was saved with '3434'"),
        ({f"{STACK}.*.up_proj": W3}, "'3333', and .* was saved with '4444'"),
    ],
)
def test_a_plan_that_was_changed_is_refused(changed: Plan, said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check_records(COMPACT | changed, str(folder))


def test_experts_that_do_not_exist_are_refused(folder: Path) -> None:
    plan = {path: scheme for path, scheme in COMPACT.items() if "down" not in path} | {f"{STACK}.0-9.down_proj": W3}
    with pytest.raises(ValueError, match="was saved with those of 2"):
        check_records(plan, str(folder))


@pytest.mark.parametrize("text", ["[", "{}", "[4]"])
def test_a_record_that_cannot_be_read_is_an_error(text: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {KEY: text})
    with pytest.raises(ValueError, match=r"cannot be read|was saved with"):
        check_records({path: scheme for path, scheme in COMPACT.items() if path != LINEAR}, str(tmp_path))


def test_a_file_that_is_cut_off_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="cannot be read, download or save it again"):
        check_records(COMPACT, str(folder))


def test_older_files_and_names_on_the_hub_are_not_checked(tmp_path: Path) -> None:
    check_records(COMPACT, "organisation/model")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    check_records(COMPACT, str(tmp_path))
