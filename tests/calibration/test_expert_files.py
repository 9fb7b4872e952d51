"""What `best` learns of experts: in memory as long as it fits, then in files, with the same bits."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from tests.calibration.test_experts import quantized, same, vlm
from transformers_qaig.calibration import quantizer_settings
from transformers_qaig.calibration.experts import StackStep
from transformers_qaig.calibration.group_context import GroupContext
from transformers_qaig.calibration.quantizer_settings import (
    LEARNED_BYTES,
    QuantizerSettings,
    memory_for_experts,
)
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.distributed import Terms
from transformers_qaig.equalization.finder import GroupFinder
from transformers_qaig.equalization.fold import Group
from transformers_qaig.nn.experts_module import LinearExperts
from transformers_qaig.rounding.learned import Learnable, LearnableInit, LearnableRounding, learn
from transformers_qaig.rounding.learned_scales import LearnableScales
from transformers_qaig.rounding.quant_grid import minmax_grid
from transformers_qaig.token_weights.uniform import Uniform
from transformers_qaig.utils.scratch import LEAST, ScratchFiles

__all__ = ["vlm"]
GB = 10**9


def block_of(experts: int, channels: int, inner: int) -> nn.Module:
    """A block of a stack of DeepSeek-V3's shape, without weights."""
    config = DeepseekV3Config(n_routed_experts=experts, hidden_size=channels, moe_intermediate_size=inner)
    with torch.device("meta"):
        block = nn.Module()
        block.experts = LinearExperts.of(DeepseekV3Experts(config).bfloat16())
    return block


def settings(memory: int, folder: Path | None = None) -> QuantizerSettings:
    return QuantizerSettings(
        RECIPES["best"], GroupFinder(frozenset(), 0), Uniform(), expert_memory=memory, scratch=ScratchFiles(folder)
    )


def weights_of(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if type(module) is nn.Linear]


def test_the_first_experts_stay_in_memory() -> None:
    block = block_of(8, 64, 32)
    names, each = weights_of(block), LEARNED_BYTES * 64 * 32
    assert len(names) == 24
    assert not settings(24 * each).keepers(block, names)
    assert list(settings(24 * each - 1).keepers(block, names)) == names[-1:]
    assert list(settings(7 * each).keepers(block, names)) == names[7:]
    assert list(settings(0).keepers(block, names)) == names


def test_256_experts_of_7168_channels_are_held_in_8_gb() -> None:
    """Arithmetic on a stack without weights: 45 GB in fp32, 106 GB of moments, 225 GB that are learned."""
    block = block_of(256, 7168, 2048)
    names = weights_of(block)
    in_files = settings(8 * GB).keepers(block, names)
    learned = [LEARNED_BYTES * block.get_parameter(f"{name}.weight").numel() for name in names if name not in in_files]
    assert 7.5 * GB < sum(learned) <= 8 * GB
    context = GroupContext(
        block, Group((), "", None, ()), {}, Terms([]), RECIPES["best"], torch.bfloat16, foldable=False
    )
    step, stack = StackStep("experts", context, 8 * GB), block.experts.stack
    for inputs, channels, others in ((("gate_proj", "up_proj"), 7168, 0), (("down_proj",), 2048, 2 * 2 * 7168 * 2048)):
        slices = list(step._slices(inputs, stack))
        assert [expert for part in slices for expert in part] == list(range(256))
        held = 4 * (2 * channels**2 + others)  # moments and shift, and what computes a down projection's inputs
        assert 6 * GB < held * max(map(len, slices)) <= 8 * GB


class Mapped:
    """Says which tensors are in files that this process has mapped, by their addresses."""

    def __init__(self) -> None:
        lines = Path("/proc/self/maps").read_text().splitlines()
        found = (re.match(r"(\w+)-(\w+) \S+ \S+ \S+ [1-9]\d*.*\(deleted\)", line) for line in lines)
        self.ranges = [(int(one[1], 16), int(one[2], 16)) for one in found if one]

    def __contains__(self, tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < stop for start, stop in self.ranges)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_learning_in_files_gives_the_same_bits_and_holds_nothing_large_in_memory(tmp_path: Path) -> None:
    shape = (256, LEAST // 256 + 64)
    weight, x, held = torch.randn(shape), torch.randn(40, shape[1]), torch.randn(20, shape[1])
    grid = minmax_grid(weight, bits=2, group_size=64, sym=False, storage_dtype=torch.bfloat16, include_zero=True)
    keep = settings(0, tmp_path).keepers(block_of(1, 64, 32), ["experts.0.up_proj"])["experts.0.up_proj"]
    seen: list[bool] = []

    def batch_loss(tensors: dict[str, Tensor], step: int) -> float:
        for part in (x[:20], x[20:], x[:10]):  # the second and third gradient are added to the first
            ((part @ (tensors["w"] - weight).T).square().mean()).backward()
        grad = tensors["w"].grad
        assert grad is not None
        seen.append(grad in Mapped() and tensors["w"] in Mapped())
        return 0.0

    def validate(tensors: dict[str, Tensor]) -> float:
        return float((held @ (tensors["w"] - weight).T).square().mean())

    def found(learnable: Learnable) -> tuple[Tensor, Tensor, float]:
        result = learn({"w": learnable}, batch_loss, validate, steps=6, rate=0.05, checks=3)
        assert result.best < result.start
        return result.results["w"].codes, result.results["w"].grid.scale, result.best

    start = LearnableInit(weight, grid, torch.bfloat16)
    in_files = LearnableRounding(start, keep)
    codes, scales, best = found(in_files)
    assert all(seen)
    assert all(tensor in Mapped() for tensor in (codes, in_files.offset, in_files._start.weight))
    seen.clear()
    expected = found(LearnableRounding(start))
    assert not any(seen)
    rounding = LearnableRounding(start).result()
    fitted, in_memory = (found(LearnableScales(rounding, torch.bfloat16, *how)) for how in ((keep,), ()))
    for one, other in (((codes, scales, best), expected), (fitted, in_memory)):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2] == other[2]
    assert not list(tmp_path.iterdir())  # the files have no names


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_packed_bits_do_not_depend_on_the_memory_for_learning(
    vlm: Path, monkeypatch: pytest.MonkeyPatch, activation_bits: int
) -> None:
    recipe = {"name": "best", "steps": 8}
    run = {"recipe": recipe, "activation_bits": activation_bits}
    in_memory = quantized(vlm, **run)
    kept, keep = [], ScratchFiles.store
    monkeypatch.setattr("transformers_qaig.utils.scratch.LEAST", 1)
    monkeypatch.setattr(ScratchFiles, "store", lambda *args, **how: (kept.append(1), keep(*args, **how))[1])
    in_files = quantized(vlm, **run, calibration={"expert_memory": "1B"})
    assert len(kept) > 100
    assert any("learned" in step for target in in_files.qaig_report.targets for step in target.accepted)
    assert same(in_memory, in_files)


def test_without_a_limit_experts_take_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_settings, "free_memory", lambda device: 4 * GB + 3)
    assert memory_for_experts(None, torch.device("cpu")) == GB
    assert memory_for_experts(7, torch.device("cpu")) == 7
