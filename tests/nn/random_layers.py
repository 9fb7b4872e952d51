"""Random packed layers, and whether their packed tensors stayed the same."""

import torch

from transformers_qaig.nn import QAIGLinear

N, K, GROUP = 24, 64, 32


def random_layer(
    bits=4, group_size=GROUP, sym=False, bias=True, dtype=torch.float32, in_features=K, out_features=N, rotation=None
):
    groups = 1 if group_size == -1 else in_features // group_size
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (out_features, in_features), dtype=torch.uint8),
        (torch.rand(out_features, groups) * 0.1 + 0.01).to(dtype),
        None if sym else torch.randint(0, 2**bits, (out_features, groups), dtype=torch.uint8),
        torch.randn(out_features).to(dtype) if bias else None,
        bits=bits,
        group_size=group_size,
        rotation=rotation,
    )


def packed_of(layer):
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items() if name != "bias"}


def assert_same_packed(layer, before):
    after = packed_of(layer)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
