"""What a block is called with: its caches are copied and nothing else, and its hidden states are found."""

import torch
from transformers import DynamicCache

from transformers_qaig.execution.block_outputs import first_tensor
from transformers_qaig.execution.layer_inputs import LayerInputs, hidden_states, with_own_caches


def test_a_cache_is_copied_deep_in_containers_and_other_things_stay_the_same_objects() -> None:
    cache, x = DynamicCache(), torch.ones(1, 1, 2, 4)
    cache.update(x, x + 1, 0)
    args, kwargs = with_own_caches(((x, [cache]), {"past": {"one": cache}, "x": x}))
    assert args[0] is x
    assert kwargs["x"] is x
    args[1][0].update(x, x, 0)
    assert args[1][0].get_seq_length() == 4
    assert cache.get_seq_length() == kwargs["past"]["one"].get_seq_length() == 2


def test_a_cache_with_recorded_tensors_is_copied_too() -> None:
    cache, weight = DynamicCache(), torch.ones(4, requires_grad=True)
    cache.update(weight * torch.ones(1, 1, 2, 4), weight * torch.ones(1, 1, 2, 4), 0)
    (own,) = with_own_caches([cache])
    keys = own.layers[0].keys
    assert keys.data_ptr() != cache.layers[0].keys.data_ptr()
    (gradient,) = torch.autograd.grad(keys.sum(), weight)
    assert gradient.tolist() == [2.0] * 4


def test_hidden_states_are_named_or_the_first_floating_tensor() -> None:
    ids, x, other = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, 2), torch.ones(1)
    assert hidden_states(LayerInputs((ids, x, other), {})) is x
    assert hidden_states(LayerInputs((other,), {"hidden_states": x})) is x
    assert hidden_states(LayerInputs((ids,), {})) is None
    assert first_tensor({"aux": None, "out": (x, other)}) is x
