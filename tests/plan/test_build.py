"""Plans of the blocks: what is packed, with which scheme, and what is left out."""

import pytest
import torch
from torch import nn

from tests.families import build
from transformers_qaig import QAIGConfig
from transformers_qaig.formats.scheme import WeightScheme, parse_plan, plan_to_dict
from transformers_qaig.plan.build import make_plan
from transformers_qaig.structure import find_decoder_blocks


def test_plan_of_a_dense_model_covers_every_linear(llava: nn.Module) -> None:
    plan, coverage = make_plan(llava, QAIGConfig(bits=3, group_size=32))
    linears = [p for b, m in find_decoder_blocks(llava).items() for n, c in m.named_modules() if type(c) is nn.Linear
               for p in [f"{b}.{n}"]]  # fmt: skip
    assert sorted(plan) == sorted(linears)
    assert coverage.packed_fraction == 1
    assert set(plan.values()) == {WeightScheme(3, 32)}
    assert "lm_head" in coverage.unpacked
    assert coverage.total + sum(coverage.unpacked.values()) == sum(p.numel() for p in llava.parameters() if p.ndim > 1)


def test_plan_is_made_on_the_meta_device(llava: nn.Module) -> None:
    with torch.device("meta"):
        meta = type(llava)(llava.config)
    assert make_plan(meta, QAIGConfig())[0] == make_plan(llava, QAIGConfig())[0]


def test_stored_bits_are_what_the_packed_tensors_take(llava: nn.Module) -> None:
    _, coverage = make_plan(llava, QAIGConfig(bits=3, group_size=32))
    # fp32 scales of 32 bits and zero points of 3 bits for every 32 weights
    assert coverage.bits_per_weight == pytest.approx(3 + (32 + 3) / 32)


def test_overrides_and_exceptions(llava: nn.Module) -> None:
    config = QAIGConfig(
        overrides={"*.down_proj": 8, "*.layers.1.*.down_proj": {"bits": 2, "group_size": 32}, "o_proj": {"sym": True}},
        modules_to_not_convert=["*.layers.0.self_attn.*"],
    )
    plan, coverage = make_plan(llava, config)
    get = {path.split("layers.")[1]: entry for path, entry in plan.items()}
    assert get["0.mlp.down_proj"].bits == 8
    assert get["1.mlp.down_proj"] == WeightScheme(2, 32)
    assert get["1.self_attn.o_proj"].sym is True
    assert not any(path.startswith("0.self_attn") for path in get)
    assert sum("modules_to_not_convert" in reason for _, reason in coverage.skipped.values()) == 4


def test_a_given_plan_is_followed_and_overridden(llava: nn.Module) -> None:
    path = next(iter(make_plan(llava, QAIGConfig())[0]))
    given = {path: {"bits": 5, "group_size": 32, "sym": True}}
    plan, coverage = make_plan(llava, QAIGConfig(plan=given))
    assert plan == parse_plan(given)
    assert "not in the given plan" in next(iter(coverage.skipped.values()))[1]
    assert make_plan(llava, QAIGConfig(plan=given, overrides={"q_proj": 3}))[0][path].bits == 3
    with pytest.raises(ValueError, match=r"layers\.9"):
        make_plan(llava, QAIGConfig(plan={"model.layers.9.q_proj": given[path]}))


def test_what_is_not_to_be_converted_is_taken_out_of_a_given_plan(llava: nn.Module) -> None:
    given, _ = make_plan(llava, QAIGConfig(vision_bits=4, embedding_bits=5))
    left = ["*.layers.0.*", "embed_tokens"]
    plan, coverage = make_plan(llava, QAIGConfig(plan=plan_to_dict(given), modules_to_not_convert=left))
    assert plan == {p: e for p, e in given.items() if ".layers.0." not in p and not p.endswith("embed_tokens")}
    reasons = {reason for _, reason in coverage.skipped.values()}
    assert reasons == {"listed in `modules_to_not_convert`"}


def test_nothing_to_pack_says_why(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"can be packed: .* is listed in `modules_to_not_convert`\."):
        make_plan(llava, QAIGConfig(modules_to_not_convert=["language_model"]))


def test_a_pattern_that_matches_nothing_is_an_error(llava: nn.Module) -> None:
    with pytest.raises(ValueError, match="w1_proj"):
        make_plan(llava, QAIGConfig(overrides={"*.w1_proj": 4}))


def test_experts_of_an_unknown_kind_count_and_stop_the_run() -> None:
    model, _ = build("qwen3_vl_moe")
    for block in find_decoder_blocks(model).values():
        block.mlp.experts.register_parameter("other", nn.Parameter(torch.zeros(4, 64, 64)))
    plan, coverage = make_plan(model, QAIGConfig())
    assert coverage.packed_fraction < 0.9
    assert any("experts" in path for path in coverage.skipped)
    assert plan  # attention could be packed
    with pytest.raises(ValueError, match=r"(?s)min_coverage.*experts"):
        coverage.check_minimum(0.9)


def test_group_that_does_not_divide_is_refitted_and_logged(llava: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "transformers.qaig")
    plan, _ = make_plan(llava, QAIGConfig(group_size=40))  # widths 64 and 96
    sizes = {path.rsplit(".", 1)[1]: entry.group_size for path, entry in plan.items()}
    assert sizes["q_proj"] == 32
    assert sizes["down_proj"] == 32
    assert "does not divide" in caplog.text


def test_small_linears_are_left_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.router = nn.Linear(64, 64), nn.Linear(64, 4)

    model = nn.Module()
    model.layers = nn.ModuleList([Block()])
    plan, coverage = make_plan(model, QAIGConfig())
    assert list(plan) == ["layers.0.big"]
    assert "too small" in coverage.skipped["layers.0.router"][1]


def test_a_linear_that_is_one_tensor_with_another_is_left_out(llava, monkeypatch) -> None:
    q, k = (f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    monkeypatch.setattr(llava, "all_tied_weights_keys", {f"{k}.weight": f"{q}.weight"})
    plan, coverage = make_plan(llava, QAIGConfig(group_size=32, calibration={"min_coverage": 0}))
    assert {q, k}.isdisjoint(plan)
    assert coverage.skipped[q][1] == f"one tensor with {k}.weight, which stays as it is"
