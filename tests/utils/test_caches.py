"""Caches in a block's arguments are copied, also those with tensors that autograd recorded; nothing else is."""

import torch
from transformers import DynamicCache

from transformers_qaig.utils.caches import with_own_caches


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
