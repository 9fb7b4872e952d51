"""The plan: which weights of a model get packed and how, decided on the meta model before any weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .allocation import Option, parse_size
from .config import MIN_GROUP_SIZE, QAIGConfig, fit_group_size, stored_bits
from .nn.hadamard import Rotation, fit_block

logger = logging.getLogger("transformers_qaig")

Plan = dict[str, dict[str, Any]]
"""Weight path (without the final `.weight`) → `{"bits": int, "group_size": int, "sym": bool}`, and for a layer whose
input is rotated `"rotation": {"block": int, "seed": int}` ([`transformers_qaig.nn.hadamard.Rotation`])."""
BLOCK = 128
"""Channels that are rotated together, at most."""
SHAPE_BITS = 2 * 64
"""Every packed weight is stored with its shape, two int64."""


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """
    The blocks of the language model, by path in `model`, in the order of their lists.

    They are the items of every outermost `nn.ModuleList` of composite modules below `model.get_decoder()`, but for
    those in a model of its own that embeds no text (a tower or image tokenizer that the decoder owns). If the model
    does not tell its decoder apart (towers would be found too), the list with the most weights is taken.

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
            if isinstance(child, nn.ModuleList) and len(child) and all(_is_block(item) for item in child):
                lists.append({f"{child_path}.{i}": item for i, item in enumerate(child)})
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
    """Whether `module` holds the text embeddings, or a table of their shape that is to be tied to them."""
    shape = getattr(getattr(embeddings, "weight", None), "shape", None)
    tables = (m.weight.shape for m in module.modules() if isinstance(m, nn.Embedding))
    return shape is None or shape in tables or any(m is embeddings for m in module.modules())


def _is_block(module: nn.Module) -> bool:
    leaves = [
        m for m in module.modules() if next(m.children(), None) is None and next(m.parameters(), None) is not None
    ]
    return len(leaves) > 1


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass
class Coverage:
    """
    How much of the language model's blocks a plan packs, in weights (elements of parameters with two or more dims).

    Attributes:
        packed, total: elements packed, elements in all blocks (3-D expert stacks included).
        stored_bits: what the packed weights take: codes, scales and zero points; 0 until their widths are chosen.
        left_out: path of every block weight that stays as it is → (elements, reason).
        elsewhere: elements outside the blocks: embeddings, head, towers and projector, by the path of the part.
        other_bits: what the saved model takes beside them: every other tensor, and the packed weights' shapes.
    """

    packed: int = 0
    total: int = 0
    stored_bits: float = 0.0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)
    other_bits: int = 0

    @property
    def share(self) -> float:
        return self.packed / self.total if self.total else 0.0

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per packed weight."""
        return self.stored_bits / self.packed if self.packed else 0.0

    def require(self, min_coverage: float) -> None:
        """Raise `ValueError`, saying what would be left out, if the share is below `min_coverage`."""
        if self.share >= min_coverage:
            return
        largest = sorted(self.left_out.items(), key=lambda item: -item[1][0])[:8]
        lines = [f"  {path}: {size:,} weights, {reason}" for path, (size, reason) in largest]
        if len(self.left_out) > len(lines):
            lines.append(f"  and {len(self.left_out) - len(lines)} more")
        raise ValueError(
            f"Only {self.share:.1%} of the {self.total:,} weights in the language model's blocks would be packed; "
            f"`min_coverage` asks for {min_coverage:.1%}. Left out:\n" + "\n".join(lines) + "\n"
            "Lower `min_coverage` in QAIGConfig if that is what you want."
        )

    def __str__(self) -> str:
        rest = ", ".join(f"{path} {size:,}" for path, size in self.elsewhere.items())
        return f"{self.share:.1%} of {self.total:,} block weights packed; kept as they are: {rest or 'nothing else'}"


def make_plan(model: nn.Module, config: QAIGConfig) -> tuple[Plan, Coverage]:
    """
    Decide bits and group size for every linear of the language model's blocks. Works on the meta device.

    Raises:
        ValueError: what [`list_options`] raises, or some weight has several widths to choose from.
    """
    options, coverage = list_options(model, config)
    open_ = [path for path, choices in options.items() if len(choices) > 1]
    if open_:
        raise ValueError(f"{open_[0]!r} and {len(open_) - 1} more have several `bits` to choose from: allocate first.")
    coverage.stored_bits = sum(choices[0].size for choices in options.values())
    return {path: dict(choices[0].entry) for path, choices in options.items()}, coverage


def list_options(model: nn.Module, config: QAIGConfig) -> tuple[dict[str, list[Option]], Coverage]:
    """
    The ways in which every linear of the language model's blocks may be stored, with their sizes; costs are not known
    yet. One way each, unless `bits` are to be chosen from. Works on the meta device.

    Raises:
        ValueError: an `overrides` or `modules_to_not_convert` pattern that matches no weight, a given plan with a path
            that is no linear of the model's blocks, or nothing to pack.
    """
    options: dict[str, list[Option]] = {}
    coverage = Coverage()
    blocks = find_blocks(model)
    unused = {*(config.overrides or {}), *(config.modules_to_not_convert or [])}
    given = set(config.plan or {})
    counted: set[int] = set()
    refitted: dict[tuple[int, int], int] = {}
    for block_path, block in blocks.items():
        for name, parameter in block.named_parameters():
            counted.add(id(parameter))
            if parameter.ndim < 2:
                continue
            coverage.total += parameter.numel()
            path = f"{block_path}.{name}".removesuffix(".weight")
            owner = block.get_submodule(name.rpartition(".")[0])
            skips = [p for p in config.modules_to_not_convert or [] if _matches(path, p)]
            unused.difference_update(skips)
            reason = "listed in `modules_to_not_convert`" if skips else _why_not(owner, name)
            if not reason and config.plan is not None and path not in config.plan:
                reason = "not in the given plan"
            if reason:
                coverage.left_out[path] = (parameter.numel(), reason)
                continue
            given.discard(path)
            candidates = [dict(config.plan[path])] if config.plan is not None else config.candidates
            for pattern, value in (config.overrides or {}).items():
                if _matches(path, pattern):
                    unused.discard(pattern)
                    changes = value if isinstance(value, dict) else {"bits": value}
                    candidates = [{**entry, **changes} for entry in candidates]
            choices: dict[str, Option] = {}
            for entry in candidates:
                wanted, size = entry["group_size"], fit_group_size(parameter.shape[1], entry["group_size"])
                if size != wanted and parameter.shape[1] > wanted:
                    refitted[parameter.shape[1], wanted] = size
                entry = {**entry, "group_size": size}
                shape = parameter.shape
                _rotate(entry, shape[1], path, config)
                choices[repr(entry)] = Option(
                    entry, stored_bits(entry, shape[0], shape[1], 8 * parameter.element_size()), float("nan")
                )
            options[path] = list(choices.values())
            coverage.packed += parameter.numel()
            coverage.other_bits += SHAPE_BITS - _bits(parameter)
    for (width, wanted), size in refitted.items():
        logger.info(
            "group_size %d does not divide %d input channels: %s", wanted, width, size if size > 0 else "per channel"
        )
    example = next(iter(options), next(iter(coverage.left_out), "nothing"))
    if unused:
        raise ValueError(
            f"{sorted(unused)} in `overrides`/`modules_to_not_convert` match no weight of the language model's blocks; "
            f"a path looks like {example!r}."
        )
    if given:
        raise ValueError(
            f"`plan` packs {sorted(given)[0]!r}, which is no linear that can be packed in this model; a path looks "
            f"like {example!r}."
        )
    if not options:
        raise ValueError("No weight of the language model's blocks can be packed.")
    tied = getattr(model, "all_tied_weights_keys", {})  # on meta they are not one tensor yet
    for name, parameter in model.named_parameters():
        if id(parameter) not in counted and parameter.ndim >= 2 and name not in tied:
            part = _part(name)
            coverage.elsewhere[part] = coverage.elsewhere.get(part, 0) + parameter.numel()
    coverage.other_bits += sum(_bits(tensor) for name, tensor in model.state_dict().items() if name not in tied)
    return options, coverage


def budget_of(config: QAIGConfig, coverage: Coverage, reachable: tuple[int, int]) -> float:
    """
    The stored bits that the packed weights may take.

    Args:
        config: says it as `target_bits` or `target_size`.
        coverage: from [`list_options`].
        reachable: what the packed weights take at least and at most.

    Raises:
        ValueError: not even the smallest choice fits; the message gives the reachable range.
    """
    if config.target_size is not None:
        budget, asked = (
            8.0 * parse_size(config.target_size) - coverage.other_bits,
            f"`target_size={config.target_size!r}`",
        )
        low, high = ((coverage.other_bits + bits) / 8 for bits in reachable)
        span = f"{low:,.0f} to {high:,.0f} bytes, of which {coverage.other_bits / 8:,.0f} are not packed"
    else:
        assert config.target_bits is not None
        asked = f"`target_bits={config.target_bits}`"
        budget = config.target_bits * coverage.packed
        low, high = (bits / coverage.packed for bits in reachable)
        span = f"{low:.3f} to {high:.3f} stored bits per packed weight, scales and zero points included"
    if budget < reachable[0]:
        raise ValueError(
            f"{asked} cannot be met: with `bits={config.bits}` and `group_size={config.group_size}` the model takes "
            f"{span}. Raise the budget, or allow narrower `bits` or a larger `group_size`."
        )
    return budget


def _rotate(entry: dict[str, Any], in_features: int, path: str, config: QAIGConfig) -> None:
    """Add the rotation that the configuration asks for; one of a given plan is checked and stays."""
    if config.plan is None and config.rotates and (block := fit_block(in_features, BLOCK)):
        entry["rotation"] = {"block": block, "seed": config.seed}
    elif rotation := Rotation.of(entry):
        try:
            rotation.check(in_features)
        except ValueError as error:
            raise ValueError(f"plan[{path!r}] is for another model: {error}.") from error


def _bits(tensor: Tensor) -> int:
    return 8 * tensor.element_size() * tensor.numel()


def _why_not(owner: nn.Module, name: str) -> str:
    """Why this weight cannot be packed; empty if it can."""
    if type(owner) is not nn.Linear:
        return f"a parameter of {type(owner).__name__}, not of nn.Linear"
    if not name.endswith("weight"):
        return "not the weight of its linear"
    if min(owner.in_features, owner.out_features) < MIN_GROUP_SIZE:
        return f"a linear of {owner.in_features} → {owner.out_features}: too small to be worth packing"
    return ""


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or path.endswith("." + pattern)


def _part(name: str) -> str:
    """`model.vision_tower.encoder.…` → `model.vision_tower`; `lm_head.weight` → `lm_head`."""
    path = name.split(".")[:-1]
    return ".".join(path[:2]) if path and path[0] == "model" else path[0] if path else name
