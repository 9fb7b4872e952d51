"""An interrupted run goes on where it stopped."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST, logits
from transformers_qaig import QAIGConfig
from transformers_qaig.calibration.resume import BlockResult, BlockStore
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.execution import targets
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.report.summary import TargetSummary
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.utils import work_folder


def test_an_interrupted_run_resumes_where_it_stopped(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers_qaig.calibration.target_quantizer as target_quantizer

    work, real = tmp_path / "work", target_quantizer.quantize_block
    quantized_so_far = []

    def stop_at_second(block, path, *args):
        quantized_so_far.append(path)
        if len(quantized_so_far) == 2:
            raise KeyboardInterrupt
        return real(block, path, *args)

    config = QAIGConfig(bits=3, calibration={"work_dir": work}, **FAST)
    monkeypatch.setattr(target_quantizer, "quantize_block", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert len(list(work.glob("*.safetensors"))) == 1
    assert not list(work.glob("*.tmp"))
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert quantized_so_far[1:] == quantized_so_far[1:2] + list(find_decoder_blocks(model))[1:]
    assert [block.resumed for block in model.qaig_report.targets] == [True, False]
    assert torch.equal(logits(model, llava), logits(quantized[0], llava))


def test_a_head_in_slices_is_resumed(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last slice has fewer rows than the others."""
    monkeypatch.setattr(targets, "ROWS_PER_CHUNK", 96)
    config = QAIGConfig(bits=3, lm_head_bits=4, calibration={"work_dir": tmp_path}, recipe="rtn", group_size=32)
    first, second = (AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config) for _ in range(2))
    assert first.lm_head.out_features % 96 != 0
    assert [block.resumed for block in second.qaig_report.targets] == [True] * 3
    assert torch.equal(logits(second, llava), logits(first, llava))


def test_a_damaged_block_is_done_again_and_the_others_are_taken(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = QAIGConfig(bits=3, calibration={"work_dir": tmp_path}, **FAST)
    AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    raw = bytearray(first.read_bytes())
    raw[-9] ^= 0x10
    first.write_bytes(raw)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert [block.resumed for block in model.qaig_report.targets] == [False, True]
    assert torch.equal(logits(model, llava), logits(quantized[0], llava))
    assert str(first) in caplog.text
    assert str(second) not in caplog.text


@pytest.mark.parametrize(
    "forge",
    [
        lambda tensors, facts: facts.pop("rotations"),
        lambda tensors, facts: facts.pop("summary"),
        lambda tensors, facts: facts.update(summary="[1"),
        lambda tensors, facts: facts.update(summary='{"path": "x", "error": "none"}'),
        lambda tensors, facts: facts.update(rotations='{"mlp.down_proj": {"block": 12345, "seed": 0}}'),
        lambda tensors, facts: tensors.popitem(),
        lambda tensors, facts: tensors.update({name: tensor[:1] for name, tensor in tensors.items()}),
    ],
)
def test_a_block_with_a_right_checksum_and_wrong_facts_is_named_and_done_again(
    forge: Callable[[dict[str, Tensor], dict[str, str]], Any],
    llava: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = QAIGConfig(bits=3, calibration={"work_dir": tmp_path}, recipe="rtn", group_size=32)
    whole = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    first = min(tmp_path.glob("*.safetensors"))
    with safe_open(first, "pt") as stored:
        tensors, facts = {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata()
    del facts[work_folder._CHECKSUM_KEY]
    forge(tensors, facts)
    facts[work_folder._CHECKSUM_KEY] = work_folder._checksum(first.stem, tensors, facts)
    save_file(tensors, first, facts)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    assert [block.resumed for block in model.qaig_report.targets] == [False, True]
    assert f"{first} does not hold what it stands for, which is done again" in caplog.text
    assert torch.equal(logits(model, llava), logits(whole, llava))


def test_a_finished_block_is_where_the_dense_one_is(tmp_path: Path) -> None:
    """On an accelerator, too, for which the meta device stands here; when it is kept, its file holds it."""
    config, block = QAIGConfig(calibration={"work_dir": tmp_path}), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 16))
    schemes = {"1": WeightScheme(bits=4, group_size=32)}
    module = nn.Sequential(block[0], QAIGLinear.like(block[1], schemes["1"]))
    with BlockStore(config, schemes, CalibrationData(), block) as store:
        store.save("block", BlockResult(module, schemes, TargetSummary("block"), {}))
        found = store.load("block", copy.deepcopy(block).to("meta"), schemes)
        assert found is not None
        assert found.summary.resumed
        assert {tensor.device.type for tensor in found.module.state_dict().values()} == {"meta"}
        store.save("block", found)
    assert {tensor.device.type for tensor in found.module.state_dict().values()} == {"cpu"}


def test_blocks_of_other_weights_are_refused(llava: Path, tmp_path: Path) -> None:
    config = QAIGConfig(bits=3, calibration={"work_dir": tmp_path / "work"}, recipe="rtn", group_size=32)
    model = AutoModelForImageTextToText.from_pretrained(llava)
    with torch.no_grad():  # outside of the blocks
        model.get_output_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "changed")
    AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    with pytest.raises(ValueError, match="different weights"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "changed", quantization_config=config)


def test_a_work_folder_that_cannot_be_written_is_refused_before_the_samples_are_read(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers_qaig.quantizer.run.load_inputs", None)
    config = QAIGConfig(bits=3, calibration={"work_dir": "/proc/nowhere/work"}, **FAST)
    with pytest.raises(
        ValueError, match=r"`work_dir`: nothing can be written to /proc/nowhere/work \(No such file or directory\)\."
    ):
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)


def test_a_work_folder_below_home_is_found(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for settings in ({"bits": 3, "recipe": "rtn"}, {"budget": 4.5, "recipe": "rtn", "dataset": FAST["dataset"]}):
        config = QAIGConfig(calibration={"work_dir": "~/work"}, group_size=32, **settings)
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
        assert list((tmp_path / "work").glob("*.safetensors"))
        assert (tmp_path / "work" / "costs").is_dir() == ("budget" in settings)
        shutil.rmtree(tmp_path / "work")
    assert not (tmp_path / "~").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`work_dir` must be the path of a folder, and ~/file is a file"):
        QAIGConfig(bits=3, calibration={"work_dir": "~/file"})


def test_a_work_folder_of_another_run_is_refused(llava: Path, tmp_path: Path) -> None:
    def quantize(num_samples: int, **arguments: Any) -> None:
        config = QAIGConfig(bits=3, calibration={"work_dir": tmp_path}, **FAST, num_samples=num_samples)
        AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config, **arguments)

    quantize(2)
    with pytest.raises(ValueError, match="work_dir"):
        quantize(3)
    with pytest.raises(ValueError, match=r"different attn_implementation"):
        quantize(2, attn_implementation="eager")
