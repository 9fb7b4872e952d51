"""Installs packed embeddings and a packed head in a model: in all their places, tied, and refusing to be resized."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..formats.scheme import Plan
from ..nn.embedding import QAIGEmbedding, tie, tied_names
from ..nn.linear import QAIGLinear
from ..structure import are_tied, find_input_embeddings, find_lm_head


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` everywhere in `model` where `old` is: some models hold their embeddings in two places."""
    for path in [path for path, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(path, new)


def install_tied_embeddings(model: PreTrainedModel, plan: Plan) -> None:
    """Makes packed embeddings and a packed head behave as a model's own, in this one model.

    Tied ones share one set of tensors from here on, and `tie_weights` and saving treat them as tied. A dense head of
    packed embeddings becomes packed, as `plan` says. `resize_token_embeddings` raises `NotImplementedError`.
    """
    embeddings, head = find_input_embeddings(model), find_lm_head(model)
    if not isinstance(embeddings.module, QAIGEmbedding) and not isinstance(head.module, QAIGLinear):
        return
    for owner in _owners(model, embeddings.module):
        # Not a bound method, which is pickled by a name that the owner's class does not have.
        owner.resize_token_embeddings = partial(_refuse_to_resize, owner)  # type: ignore[assignment]
    if are_tied(model) and isinstance(embeddings.module, QAIGEmbedding):
        packed = head.module
        if isinstance(packed, nn.Linear):
            packed = QAIGLinear.like(packed, plan[head.path], device="meta")
            model.set_submodule(head.path, packed)
        assert isinstance(packed, QAIGLinear)
        tie(packed, embeddings.module)
        names = tied_names(model.all_tied_weights_keys, embeddings.module.sym, head.path, embeddings.path)
        model.all_tied_weights_keys = model._tied_weights_keys = names


def uninstall_tied_embeddings(model: PreTrainedModel) -> None:
    """Undoes [`install_tied_embeddings`] once embeddings and head are dense; tied ones share a tensor again."""
    for owner in _owners(model, find_input_embeddings(model).module):
        vars(owner).pop("resize_token_embeddings", None)
    if vars(model).pop("_tied_weights_keys", None) is not None:
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.tie_weights()


def _owners(model: PreTrainedModel, embeddings: nn.Module | None) -> list[PreTrainedModel]:
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [module for module in models if any(part is embeddings for part in module.modules())]


def _refuse_to_resize(
    model: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *_: Any, **__: Any
) -> nn.Module:
    embeddings = model.get_input_embeddings()
    if pad_to_multiple_of is None and new_num_tokens in (None, embeddings.num_embeddings):
        return embeddings
    raise NotImplementedError(
        f"{type(model).__name__}.resize_token_embeddings({new_num_tokens}): embeddings or head are packed, and packed "
        "rows cannot be added or taken away. Resize the unquantized model and quantize that, or call "
        "`model.dequantize()` first."
    )
