"""What vLLM loads piece by piece becomes layers that compute the same."""

from typing import Any

import pytest
import torch
from torch import nn

from transformers_qaig import QAIGLinear
from transformers_qaig.formats.hadamard import rotate
from transformers_qaig.formats.scheme import Rotation, WeightScheme
from transformers_qaig.integrations.engines.loaded_shards import TENSORS, LoadedShards
from transformers_qaig.integrations.engines.shards import make_embedding, make_linears

CPU, K = torch.device("cpu"), 128


def linear(bits: int, rows: int, *, sym: bool = False, rotation: Rotation | None = None, a: int = 16) -> QAIGLinear:
    codes, groups = torch.randint(0, 2**bits, (rows, K), dtype=torch.uint8), (rows, K // 64)
    zero = None if sym else torch.randint(0, 2**bits, groups, dtype=torch.uint8)
    return QAIGLinear.from_codes(
        codes, torch.rand(groups) * 0.1, zero, bits=bits, group_size=64, activation_bits=a, rotation=rotation
    )


def load(layers: list[nn.Module], shards: list[Any]) -> LoadedShards:
    """Loads the tensors as vLLM does: through the parameters' loaders, in any order."""
    loaded = LoadedShards("layer", [layer.scheme if isinstance(layer, QAIGLinear) else None for layer in layers])
    target = nn.Module()
    loaded.register(target, torch.float32)
    for shard, layer in list(zip(shards, layers))[::-1]:
        for name, tensor in layer.state_dict().items():
            parameter = target.get_parameter(name)
            arguments = (parameter, tensor) if shard is None else (parameter, tensor, shard)
            parameter.weight_loader(*arguments)
    guard = target.get_parameter("weight")
    if isinstance(layers[0], QAIGLinear):
        guard.weight_loader(guard, torch.empty(0), shards[0])  # which every checkpoint has somewhere
    return loaded


def check(layers: list[nn.Module], shards: list[Any], modules: int) -> None:
    sizes = [layer.out_features for layer in layers]
    bias, x = torch.randn(sum(sizes)), torch.randn(3, K)
    made = make_linears(load(layers, shards), K, sizes, bias, CPU, torch.float32)
    assert len(made) == modules
    expected = torch.cat([layer(x) for layer in layers], -1) + bias
    torch.testing.assert_close(torch.cat([module(x) for module in made], -1), expected, rtol=1e-5, atol=1e-4)


def test_parts_of_one_scheme_become_one_layer() -> None:
    check([linear(3, 40), linear(3, 8), linear(3, 8)], ["q", "k", "v"], 1)


def test_parts_of_several_schemes_stay_apart() -> None:
    check([linear(2, 40), linear(5, 8), linear(5, 8, sym=True)], ["q", "k", "v"], 3)


def test_a_part_may_be_dense() -> None:
    check([linear(4, 48), nn.Linear(K, 32, bias=False)], [0, 1], 2)


def test_rotated_inputs_and_8_bit_activations_are_kept() -> None:
    rotation = Rotation(64, 7)
    layers: list[nn.Module] = [linear(4, 16, rotation=rotation, a=8), linear(4, 32, rotation=rotation, a=8)]
    check(layers, [0, 1], 1)
    x = torch.randn(2, K)
    assert not torch.equal(rotate(x, rotation), x)


def test_a_layer_may_be_whole_in_the_file() -> None:
    check([linear(8, 96)], [None], 1)


def test_embeddings_return_rows() -> None:
    rows, ids = linear(3, 40), torch.tensor([3, 0, 39])
    made = make_embedding(load([rows], [None]), 40, K, CPU, torch.float32)
    torch.testing.assert_close(made(ids), rows.dequantize()[ids])


@pytest.mark.parametrize("name", list(TENSORS))
def test_a_missing_tensor_names_the_layer(name: str) -> None:
    loaded = load([linear(4, 32)], [None])
    del loaded.shards[0][name]
    with pytest.raises(ValueError, match=f"layer: the checkpoint holds no {name}"):
        make_linears(loaded, K, [32], None, CPU, torch.float32)


def test_a_tensor_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer.weight_packed has shape \(32, 16\), expected \(48, 16\)"):
        make_linears(load([linear(4, 32)], [None]), K, [48], None, CPU, torch.float32)


def test_a_full_weight_of_a_packed_layer_is_refused() -> None:
    loaded, target = LoadedShards("layer", [WeightScheme(4, 64)]), nn.Module()
    loaded.register(target, torch.float32)
    weight = target.get_parameter("weight")
    with pytest.raises(ValueError, match="layer is packed, and its file holds a full weight"):
        weight.weight_loader(weight, torch.zeros(32, K))


def test_another_way_of_fusing_is_refused() -> None:
    loaded, target = LoadedShards("layer", [WeightScheme(4, 64)] * 2), nn.Module()
    loaded.register(target, torch.float32)
    packed = target.get_parameter("weight_packed")
    for shard in (None, 2, (0, 1), "r"):
        with pytest.raises(ValueError, match="fused in a way that is not supported"):
            packed.weight_loader(packed, torch.zeros(1), shard)


def test_what_the_loader_of_transformers_refuses_is_refused() -> None:
    loaded = load([linear(4, 32)], [None])
    loaded.shards[0]["weight_scale"] = -loaded.shards[0]["weight_scale"]
    with pytest.raises(ValueError, match=r"layer\.weight_scale has negative values"):
        make_linears(loaded, K, [32], None, CPU, torch.float32)
    rotated = load([linear(4, 32, rotation=Rotation(64, 7))], [None])
    with pytest.raises(ValueError, match="layer has a `rotation` in the plan, and embeddings have no input"):
        make_embedding(rotated, 32, K, CPU, torch.float32)
