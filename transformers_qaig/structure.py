"""Finds the parts of a vision-language model by its structure: blocks, tower, projector, embeddings, head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


def find_decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the blocks of the language model, by path in `model`, in the order of their lists.

    They are the items of every outermost `nn.ModuleList` of composite modules below `model.get_decoder()`. Lists in a
    model of its own that embeds no text do not count (a tower or image tokenizer that the decoder owns). If the model
    does not tell its decoder apart, towers would be found too; then the list with the most weights is taken.

    Raises:
        ValueError: no such list.
    """
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    lists: list[dict[str, nn.Module]] = []

    def visit(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            if isinstance(child, PreTrainedModel) and not _embeds_text(child, embeddings):
                continue
            if is_block_list(child):
                lists.append({f"{child_path}.{i}": item for i, item in child.named_children()})
            else:
                visit(child, child_path)

    root = next((name for name, module in model.named_modules() if module is decoder), "")
    visit(decoder, root)
    if not lists:
        raise ValueError(
            f"{type(model).__name__}: no list of blocks found below its decoder ({type(decoder).__name__}); "
            "nothing can be quantized."
        )
    if decoder is model:
        lists = [max(lists, key=lambda found: sum(_size(block) for block in found.values()))]
    return {path: block for found in lists for path, block in found.items()}


def _embeds_text(module: nn.Module, embeddings: nn.Module | None) -> bool:
    """Whether `module` holds the text embeddings, or a table of their shape that will be tied to them."""
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

    The tower is `model.get_encoder(modality="image")`. The projector is what has one parent with the tower and the
    decoder. Where that parent has another model, such as an audio tower, modules between could belong to either: none
    is taken.

    Raises:
        ValueError: no tower that is separate from the decoder.
    """
    tower = model.get_encoder(modality="image") if isinstance(model, PreTrainedModel) else model
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    paths = {id(module): path for path, module in model.named_modules()}
    if any(part is decoder for part in tower.modules()) or any(part is tower for part in decoder.modules()):
        raise ValueError(f"{type(model).__name__}: no vision tower found that stands apart from its decoder.")
    parts = _common(paths[id(tower)].split("."), paths[id(decoder)].split("."))
    parent = model.get_submodule(".".join(parts))
    text = (decoder, tower, find_input_embeddings(model).module, find_lm_head(model).module)
    beside = {
        name: module
        for name, module in parent.named_children()
        if not any(one is other for one in module.modules() for other in text)
    }
    if any(isinstance(module, PreTrainedModel) for part in beside.values() for module in part.modules()):
        beside = {}
    found = [tower, *beside.values()]
    return {path: module for path, module in model.named_modules() if any(module is one for one in found)}


def _common(one: list[str], other: list[str]) -> list[str]:
    return [a for i, a in enumerate(one) if one[: i + 1] == other[: i + 1]]


@dataclass(frozen=True)
class Found:
    """A module and its path; None and "" if the model has no such module."""

    path: str = ""
    module: nn.Module | None = None


def find_input_embeddings(model: nn.Module) -> Found:
    """Finds the input embeddings of the text."""
    return _found(model, model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None)


def find_lm_head(model: nn.Module) -> Found:
    """Finds the output head; a base model has none."""
    return _found(model, model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None)


def are_tied(model: nn.Module) -> bool:
    """Whether head and embeddings are one tensor, or will be once the weights are loaded."""
    ties = getattr(model, "all_tied_weights_keys", {})
    return ties.get(f"{find_lm_head(model).path}.weight") == f"{find_input_embeddings(model).path}.weight"


def _found(model: nn.Module, wanted: nn.Module | None) -> Found:
    return next((Found(path, module) for path, module in model.named_modules() if module is wanted), Found())
