"""Finds the parts of a vision-language model by its structure: blocks, tower, projector, embeddings, head."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

PICTURE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class Found:
    """A module and its path; None and "" if the model has no such module."""

    path: str = ""
    module: nn.Module | None = None


def find_decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the blocks of the language model, by path in `model`, in the order of their lists.

    They are the items of every outermost `nn.ModuleList` of composite modules below the text encoder, if there is one,
    and below `model.get_decoder()`. Lists in a model of its own that embeds no text do not count. Nor do those of the
    vision and audio encoders, such as an image tokenizer that the decoder owns. If the model does not tell its decoder
    apart, towers would be found too; then the list with the most weights is taken.

    Raises:
        ValueError: no such list.
    """
    check_runs(model)
    decoder, encoder = _decoder(model), find_text_encoder(model)
    embeddings = find_input_embeddings(model).module
    towers = _towers(model) if decoder is not model else []
    lists: list[dict[str, nn.Module]] = []

    def visit(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            if isinstance(child, PreTrainedModel) and not _embeds_text(child, embeddings):
                continue
            if any(child is tower for tower in towers) or _is_list_of_lists(child):
                continue
            if is_block_list(child):
                lists.append({f"{child_path}.{i}": item for i, item in child.named_children()})
            else:
                visit(child, child_path)

    for root in [decoder] if encoder is None or _holds(decoder, encoder) else [encoder, decoder]:
        visit(root, next((name for name, module in model.named_modules() if module is root), ""))
    if not lists:
        raise ValueError(
            f"{type(model).__name__}: no list of blocks found below its decoder ({type(decoder).__name__}); "
            "nothing can be quantized."
        )
    if decoder is model:
        lists = [max(lists, key=lambda found: sum(_size(block) for block in found.values()))]
    return {path: block for found in lists for path, block in found.items()}


def find_text_encoder(model: nn.Module) -> nn.Module | None:
    """Finds the text encoder of an encoder-decoder model; None if the model has none, or its encoder reads no text."""
    if not is_encoder_decoder(model):
        return None
    assert isinstance(model, PreTrainedModel)
    encoder, decoder = model.get_encoder(), _decoder(model)
    if encoder is model or _holds(encoder, decoder):
        return None
    return encoder if _embeds_text(encoder, find_input_embeddings(model).module) else None


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the answer is written by a decoder with input ids of its own (`decoder_input_ids`)."""
    if not isinstance(model, PreTrainedModel):
        return False
    configs = model.config, model.config.get_text_config()
    asked = any(getattr(config, "is_encoder_decoder", False) for config in configs)
    return asked and "decoder_input_ids" in inspect.signature(model.forward).parameters


def check_runs(model: nn.Module) -> None:
    """Checks that a forward pass through the whole model exists.

    Raises:
        ValueError: the model is several ones that only generate together; the message names the one to quantize.
    """
    implemented = type(model).forward is not getattr(nn.Module, "forward")  # noqa: B009  # mypy calls it a method
    if implemented or not isinstance(model, PreTrainedModel):
        return
    parts = [type(part).__name__ for part in model.children() if isinstance(part, PreTrainedModel)]
    one = next((name for name in parts if name.endswith("ForConditionalGeneration")), parts[0] if parts else "a part")
    raise ValueError(
        f"{type(model).__name__} has no forward pass of its own: it is made of {', '.join(parts) or 'parts'}. Quantize "
        f"the part that reads pictures and text: {one}.from_pretrained(...)."
    )


def _decoder(model: nn.Module) -> nn.Module:
    return model.get_decoder() if isinstance(model, PreTrainedModel) else model


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(one is part for one in module.modules())


def _towers(model: nn.Module) -> list[nn.Module]:
    """Returns the vision and the audio encoder, as far as the model names them and they embed no text."""
    if not isinstance(model, PreTrainedModel):
        return []
    embeddings = find_input_embeddings(model).module
    found = (model.get_encoder(modality=modality) for modality in ("image", "audio"))
    return [tower for tower in found if tower is not None and not _embeds_text(tower, embeddings)]


def _is_list_of_lists(module: nn.Module) -> bool:
    """Whether the items of a list have no forward pass of their own (a resampler's pairs of attention and MLP)."""
    return isinstance(module, nn.ModuleList) and any(isinstance(item, nn.ModuleList) for item in module)


def _embeds_text(module: nn.Module, embeddings: nn.Module | None) -> bool:
    """Whether `module` holds the text embeddings, or an embedding matrix of their shape that will be tied to them."""
    shape = getattr(getattr(embeddings, "weight", None), "shape", None)
    tables = (m.weight.shape for m in module.modules() if isinstance(m, nn.Embedding))
    return shape is None or shape in tables or any(m is embeddings for m in module.modules())


def is_block_list(module: nn.Module) -> bool:
    """Whether this is a list of composite modules."""
    return isinstance(module, nn.ModuleList) and len(module) > 0 and all(_is_block(item) for item in module)


def _is_block(module: nn.Module) -> bool:
    leaves = [
        m for m in module.modules() if next(m.children(), None) is None and next(m.parameters(), None) is not None
    ]
    return len(leaves) > 1


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def find_vision_tower(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the vision tower and, beside it, the projector: modules by path in `model`, none inside another.

    The tower is `model.get_encoder(modality="image")`, or the encoder of a model that only writes what it sees. The
    projector is what has one parent with the tower and the decoder. Where that parent has another model, such as an
    audio tower, modules between could belong to either: none is taken.

    Raises:
        ValueError: no tower that is separate from the decoder.
    """
    decoder, tower, embeddings = _decoder(model), _vision_encoder(model), find_input_embeddings(model)
    paths = {id(module): path for path, module in model.named_modules()}
    text = [decoder, tower, embeddings.module, find_lm_head(model).module]
    if tower is None:
        raise ValueError(f"{type(model).__name__}: no vision tower found that stands apart from its decoder.")
    if (encoder := find_text_encoder(model)) is not None and _holds(encoder, tower):
        parts = _common(paths[id(tower)].split("."), embeddings.path.split("."))
    elif _holds(decoder, tower):
        parts = paths[id(decoder)].split(".")
        text += find_decoder_blocks(model).values()
    else:
        parts = _common(paths[id(tower)].split("."), paths[id(decoder)].split("."))
        text.append(encoder)
    parent = model.get_submodule(".".join(parts))
    beside = {
        name: module
        for name, module in parent.named_children()
        if not any(one is other for one in module.modules() for other in text)
    }
    if any(isinstance(module, PreTrainedModel) for part in beside.values() for module in part.modules()):
        beside = {}
    found = [tower, *beside.values()]
    return {path: module for path, module in model.named_modules() if any(module is one for one in found)}


def _vision_encoder(model: nn.Module) -> nn.Module | None:
    """Returns the encoder of pictures that embeds no text and holds no decoder, wherever the model has it."""
    if not isinstance(model, PreTrainedModel):
        return None
    embeddings, decoder = find_input_embeddings(model).module, _decoder(model)
    owners = [model, *(part for part in (model.get_encoder(), decoder) if isinstance(part, PreTrainedModel))]
    found = [owner.get_encoder(modality="image") for owner in owners]
    found += [model.get_encoder()] if is_encoder_decoder(model) else []
    towers = (one for one in found if one is not None and not _embeds_text(one, embeddings))
    return next((one for one in towers if not _holds(one, decoder)), None)


def _common(one: list[str], other: list[str]) -> list[str]:
    return [a for i, a in enumerate(one) if one[: i + 1] == other[: i + 1]]


def find_input_embeddings(model: nn.Module) -> Found:
    """Finds the input embeddings of the text."""
    try:
        return _found(model, model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None)
    except NotImplementedError:  # Transformers' own lookup gave up
        decoder = _decoder(model)
        if decoder is model or not isinstance(decoder, PreTrainedModel):
            return Found()
        return _found(model, decoder.get_input_embeddings())


def find_lm_head(model: nn.Module) -> Found:
    """Finds the output head: what the model names, else what its decoder does. A base model has none."""
    owners = [owner for owner in (model, _decoder(model)) if isinstance(owner, PreTrainedModel)]
    heads = (owner.get_output_embeddings() for owner in owners)
    return _found(model, next((head for head in heads if head is not None), None))


def are_tied(model: nn.Module) -> bool:
    """Whether head and embeddings are one tensor, or will be once the weights are loaded."""
    ties = getattr(model, "all_tied_weights_keys", {})
    return is_tied(ties, find_lm_head(model), find_input_embeddings(model))


def is_tied(ties: Mapping[str, str], head: Found, embeddings: Found) -> bool:
    """Whether Transformers' `ties`, of a tied weight to what it is tied to, name the head and the embeddings."""
    return ties.get(f"{head.path}.weight") == f"{embeddings.path}.weight"


def shared_parameters(model: nn.Module) -> frozenset[int]:
    """Returns the `id` of every parameter that is used in several places."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return frozenset(parameter for parameter, count in uses.items() if count > 1)


def has_float32(model: nn.Module) -> bool:
    """Whether a parameter of two or more dimensions is in float32."""
    return any(weight.dtype == torch.float32 for weight in model.parameters() if weight.ndim >= 2)


def picture_tokens(model: nn.Module) -> list[int]:
    """Returns the ids of the tokens that stand for patches of images and videos, as the model's config names them."""
    config = getattr(model, "config", None)
    return [token for name in PICTURE_TOKENS if isinstance(token := getattr(config, name, None), int)]


def _found(model: nn.Module, wanted: nn.Module | None) -> Found:
    return next((Found(path, module) for path, module in model.named_modules() if module is wanted), Found())
