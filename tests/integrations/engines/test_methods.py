"""Layers of an engine that run packed: their shards, their bias, and heads that are padded or tied."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig import QAIGLinear
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.integrations.engines.methods import (
    PackedLinear,
    PackedRows,
    refuse_dense,
    refuse_permuted_zeros,
)
from transformers_qaig.integrations.engines.served_plan import ServedPlan

K, ROWS = 64, 24


class Rows(PackedRows):
    """Methods of an engine whose layers say what they are."""

    def is_head(self, layer: nn.Module) -> bool:
        return layer.head


def packed(bits: int = 4, rows: int = ROWS) -> QAIGLinear:
    codes = torch.randint(0, 2**bits, (rows, K), dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (rows, 1), dtype=torch.uint8)
    return QAIGLinear.from_codes(codes, torch.rand(rows, 1) * 0.1, zero, bits=bits, group_size=64)


def created(method: PackedLinear, layers: Sequence[QAIGLinear], sizes: list[int], **facts: Any) -> nn.Module:
    """A layer of the engine, with parameters and what was loaded into them."""
    layer = nn.Module()
    for name, value in facts.items():
        setattr(layer, name, value)
    method.create_weights(layer, K, sizes, K, sum(sizes), torch.float32, weight_loader=None)
    for index, one in enumerate(layers):
        for name, tensor in one.state_dict().items():
            parameter = layer.get_parameter(name)
            parameter.weight_loader(parameter, tensor, *([index] if len(layers) > 1 else []))
    return layer


def method_for(kind: type[PackedLinear], *layers: QAIGLinear) -> PackedLinear:
    return kind("blocks.0.proj", [layer.scheme for layer in layers])


def test_shards_of_several_widths_compute_as_one_layer_with_its_bias() -> None:
    layers, bias, x = [packed(3), packed(5, rows=8)], torch.randn(ROWS + 8), torch.randn(2, K)
    method = method_for(PackedLinear, *layers)
    layer = created(method, layers, [ROWS, 8], bias=nn.Parameter(bias))
    method.process_weights_after_loading(layer)
    expected = torch.cat([one(x) for one in layers], -1) + bias
    torch.testing.assert_close(method.apply(layer, x), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in layer.named_parameters(recurse=False)] == ["bias", "weight"]


def test_a_bias_that_the_engine_adds_itself_is_left_to_it() -> None:
    one, x = packed(), torch.randn(2, K)
    method = method_for(PackedLinear, one)
    layer = created(method, [one], [ROWS], bias=nn.Parameter(torch.ones(ROWS)), skip_bias_add=True)
    method.process_weights_after_loading(layer)
    assert torch.equal(method.apply(layer, x), one(x))


def test_a_weight_that_is_one_in_the_plan_may_have_several_sizes_in_the_engine() -> None:
    one, x = packed(), torch.randn(2, K)
    method = method_for(PackedLinear, one)
    layer = created(method, [one], [ROWS - 8, 8])
    method.process_weights_after_loading(layer)
    assert method.apply(layer, x).shape == (2, ROWS)


def test_shards_that_are_not_those_of_the_plan_are_counted() -> None:
    method = PackedLinear("blocks.0.proj", [WeightScheme(4, 64)] * 3)
    with pytest.raises(ValueError, match=r"blocks\.0\.proj has 4 parts in this engine and 3 in the plan"):
        method.create_weights(nn.Module(), K, [8, 8, 8, 8], K, 32, torch.float32)


GAPS = (0, 2, 1), (0, 2), (1, 3), (2, 1, 3)
REPEATED = (0, 0), (0, 1, 1), (3, 2, 3)


@pytest.mark.parametrize("shards", [((0, 1, 2), 3), (0, (1, 2, 3))])
@pytest.mark.parametrize("turn", [1, -1])
def test_one_of_two_tensors_may_hold_several_parts(shards: Any, turn: int) -> None:
    """As in Qwen3.5: q, k and v of its linear attention are one tensor, and z is another."""
    sizes = [ROWS, 16, 8, 32]
    rows = [sum(sizes[part] for part in (shard if isinstance(shard, tuple) else (shard,))) for shard in shards]
    layers, x = [packed(3, rows[0]), packed(5, rows[1])], torch.randn(2, K)
    method, layer = method_for(PackedLinear, *layers), nn.Module()
    method.create_weights(layer, K, sizes, K, sum(sizes), torch.float32)
    for one, shard in list(zip(layers, shards))[::turn]:
        for name, tensor in one.state_dict().items():
            parameter = layer.get_parameter(name)
            parameter.weight_loader(parameter, tensor, shard)
    method.process_weights_after_loading(layer)
    torch.testing.assert_close(method.apply(layer, x), torch.cat([one(x) for one in layers], -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shard", [1, (0, 1, 2, 3), (1, 2), (), None, (0, 2, 1), (0, 2), (1, 3), (2, 1, 3), (0, 0), (0, 1, 1)]
)
def test_parts_that_are_at_no_end_of_a_layer_are_refused(shard: Any) -> None:
    method, layer = PackedLinear("blocks.0.proj", [WeightScheme(4, 64)] * 2), nn.Module()
    method.create_weights(layer, K, [8] * 4, K, 32, torch.float32)
    parameter = layer.get_parameter("weight_packed")
    with pytest.raises(ValueError, match="fused in a way that is not supported"):
        parameter.weight_loader(parameter, torch.zeros(1), shard)


def test_a_layer_in_pieces_is_refused_with_the_option_to_change() -> None:
    layer = nn.Module()
    layer.tp_size = 2
    with pytest.raises(NotImplementedError, match=r"blocks\.0\.proj.*--tensor-parallel-size 1` instead of 2"):
        PackedLinear("blocks.0.proj", [WeightScheme(4, 64)]).create_weights(layer, K, [8], K, 8, torch.float32)


@pytest.mark.parametrize("padding", [0, 8])
def test_a_head_takes_the_first_of_a_padded_bias(padding: int) -> None:
    one, x, bias = packed(), torch.randn(2, K), torch.randn(ROWS + padding)
    method = method_for(Rows, one)
    layer = created(method, [one], [ROWS + padding], head=True, org_vocab_size=ROWS)
    method.process_weights_after_loading(layer)
    torch.testing.assert_close(method.apply(layer, x, bias), one(x) + bias[:ROWS])
    assert torch.equal(method.apply(layer, x), one(x))


@pytest.mark.parametrize("is_tied", [True, False])
def test_embeddings_look_up_rows_and_are_a_head_where_both_are_tied(is_tied: bool) -> None:
    one, x, ids = packed(), torch.randn(2, K), torch.tensor([3, 0, ROWS - 1])
    method = method_for(Rows, one)
    method.is_tied = is_tied
    layer = created(method, [one], [ROWS], head=False, org_vocab_size=ROWS)
    method.process_weights_after_loading(layer)
    assert torch.equal(method.embedding(layer, ids), one.dequantize(torch.float32)[ids])
    assert hasattr(layer, "packed") == is_tied
    torch.testing.assert_close(method.apply(layer, x), one(x))  # some models tell nobody that both are tied
    assert layer.packed[0].weight_packed is layer.rows.weight_packed


def test_zero_points_of_q_and_k_are_refused_where_their_rows_are_permuted() -> None:
    sym, asym = WeightScheme(4, 32, True), WeightScheme(4, 32)
    refuse_permuted_zeros("qkv_proj", [sym, None, asym])  # v stays as it is
    for schemes in ([asym, sym, sym], [sym, asym, sym]):
        with pytest.raises(NotImplementedError, match="sym=True"):
            refuse_permuted_zeros("qkv_proj", schemes)


def test_a_dense_layer_whose_weight_is_packed_in_the_file_is_refused() -> None:
    scheme = WeightScheme(4, 32)
    paths = ("lm_head", "projector.linear_1", "layers.0.mlp.up_proj", "merger.mlp.0")
    plan = ServedPlan(dict.fromkeys(paths, scheme))
    model = nn.Module()
    model.other = nn.Sequential(nn.Linear(8, 8))
    model.lm_head, model.norm, model.up_proj = nn.Module(), nn.LayerNorm(8), nn.Linear(8, 8)
    refuse_dense(model, plan)  # a stage without a head; a layer of a block, of which another model has one
    model.lm_head = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"packed weight lm_head, and a dense one called lm_head"):
        refuse_dense(model, plan)
    model.lm_head.quant_method = PackedLinear("lm_head", [scheme])
    refuse_dense(model, plan)
    model.language = nn.Module()
    model.language.linear_1 = nn.Linear(8, 8)
    with pytest.raises(
        ValueError, match=r"packed weight projector\.linear_1, and a dense one called language\.linear_1"
    ):
        refuse_dense(model, plan)
    plan.linear("projector.linear_1", {})
    refuse_dense(model, plan)
