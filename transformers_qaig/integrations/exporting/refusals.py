"""Collects all reasons why a format cannot hold a model, with layers and remedies, and raises them as one error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...nn.experts_layout import split_path
from ...plan.allocate import FUSED
from ...utils.errors import SettingError
from .saved_model import PackedWeight

NO_ROTATION = 'quantize with recipe={"name": "default", "rotation": "none"}, or without activation_bits=8'
NO_OTHERS = "no budget, no plan, and no other bits in overrides, vision_bits, lm_head_bits and embedding_bits"
_SHOWN = 3


@dataclass(frozen=True)
class Refusal:
    """One thing that a format cannot hold.

    Attributes:
        reason: a sentence without its full stop.
        remedy: what makes the export possible, from a verb on.
        paths: of the weights; empty if it is no matter of single weights.
    """

    reason: str
    remedy: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.paths[:_SHOWN])
        more = f" and {len(self.paths) - _SHOWN} more" if len(self.paths) > _SHOWN else ""
        return f"{self.reason}{f' ({shown}{more})' if shown else ''}. To make it possible: {self.remedy}."


class ExportError(SettingError):
    """The format cannot hold the model. Nothing was written."""


def raise_all(refusals: Iterable[Refusal], format_name: str) -> None:
    """Raises `ExportError` with all refusals, if there is any."""
    found = list(refusals)
    if found:
        lines = "\n".join(f"  - {refusal}" for refusal in found)
        raise ExportError(f"The format {format_name} cannot hold this model exactly, so nothing was written:\n{lines}")


def refuse_where(
    weights: Iterable[PackedWeight], holds: Callable[[PackedWeight], bool], reason: str, remedy: str
) -> Iterator[Refusal]:
    """Yields one refusal of all weights that meet a condition, or none."""
    paths = tuple(weight.path for weight in weights if holds(weight))
    if paths:
        yield Refusal(reason, remedy, paths)


def refuse_rotated(weights: Iterable[PackedWeight]) -> Iterator[Refusal]:
    """Refuses rotated weights: only our kernels rotate the input."""
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme.rotation is not None,
        "the weights are stored for a rotated input, which the format cannot express",
        NO_ROTATION,
    )


def refuse_rounded_inputs(weights: Iterable[PackedWeight]) -> Iterator[Refusal]:
    """Refuses weights whose inputs are rounded to 8 bits."""
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme.activation_bits == 8,
        "the inputs are rounded to 8 bits, and the format stores weights alone",
        "quantize with activation_bits=16",
    )


def refuse_other_widths(weights: Iterable[PackedWeight], allowed: Collection[int]) -> Iterator[Refusal]:
    """Refuses weights of other widths than those that are allowed."""
    weights = list(weights)
    known, found = (
        ", ".join(map(str, sorted(widths)))
        for widths in (allowed, {weight.scheme.bits for weight in weights} - set(allowed))
    )
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme.bits not in allowed,
        f"the format takes {known} bits, and these layers have {found}",
        f"quantize again with bits={4 if 4 in allowed else max(allowed)} and {NO_OTHERS}, or leave these layers out "
        "with modules_to_not_convert",
    )


def refuse_other_group_sizes(weights: Iterable[PackedWeight], allowed: Collection[int]) -> Iterator[Refusal]:
    """Refuses groups of other sizes. -1 counts as the number of input channels, and is allowed if listed."""
    known = ", ".join("-1 (per channel)" if size == -1 else str(size) for size in sorted(allowed))
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme.group_size not in allowed and not (
            weight.scheme.group_size == -1 and weight.in_features in allowed
        ),
        f"the format has no such group_size: it takes {known}",
        "quantize with group_size=32, 64 or 128, whichever divides the layers' input channels",
    )  # fmt: skip


def refuse_kinds(weights: Iterable[PackedWeight], refused: Mapping[str, tuple[str, str]]) -> Iterator[Refusal]:
    """Refuses packed embeddings or experts.

    Args:
        weights: of the model.
        refused: kind → reason and remedy.
    """
    weights = list(weights)
    for kind, (reason, remedy) in refused.items():
        yield from refuse_where(weights, lambda weight, kind=kind: weight.kind == kind, reason, remedy)  # type: ignore[misc]


def refuse_all_but_linears(weights: Iterable[PackedWeight], format_name: str) -> Iterator[Refusal]:
    """Refuses all but linears whose input is taken as it is."""
    weights = list(weights)
    yield from refuse_rotated(weights)
    yield from refuse_rounded_inputs(weights)
    yield from refuse_kinds(
        weights,
        {
            "embedding": (f"{format_name} has no packed embeddings", "quantize without embedding_bits"),
            "expert": (
                f"this export writes no experts as {format_name}",
                "export as compressed-tensors, or leave the experts out with modules_to_not_convert",
            ),
        },
    )


def refuse_several_schemes(weights: Iterable[PackedWeight], reason: str) -> Iterator[Refusal]:
    """Refuses weights that differ from the first in bits, group size or symmetry."""
    weights = list(weights)
    first = weights[0].scheme if weights else None
    yield from refuse_where(
        weights,
        lambda weight: weight.scheme != first,
        reason,
        f"quantize again with bits=4 and {NO_OTHERS}, and a group_size that divides every layer's input channels",
    )


def refuse_unequal_fused(weights: Iterable[PackedWeight], unpacked: Iterable[str]) -> Iterator[Refusal]:
    """Refuses linears that an engine fuses into one layer, if their schemes differ."""
    schemes: dict[str, object] = {weight.path: weight.scheme for weight in weights if weight.kind == "linear"}
    schemes |= dict.fromkeys(unpacked)
    found: dict[str, None] = {}
    for path in schemes:
        parent, _, name = path.rpartition(".")
        for names in FUSED:
            together = [f"{parent}.{each}" for each in names if f"{parent}.{each}" in schemes]
            if name in names and len({schemes[each] for each in together}) > 1:
                found |= dict.fromkeys(together)
    if found:
        yield Refusal(
            "the engine joins these layers into one, which has one scheme, and theirs differ",
            "quantize with BitBudget(fuse=True) (fuse_groups=True in older files), or with one width, and leave out "
            "all of them or none",
            tuple(found),
        )


def refuse_unequal_experts(weights: Iterable[PackedWeight]) -> Iterator[Refusal]:
    """Refuses stacks whose experts or projections differ in their schemes."""
    stacks: dict[str, list[PackedWeight]] = {}
    for weight in weights:
        parts = split_path(weight.path) if weight.kind == "expert" else None
        if parts is not None:
            stacks.setdefault(parts[0], []).append(weight)
    mixed = tuple(stack for stack, held in stacks.items() if len({weight.scheme for weight in held}) > 1)
    if mixed:
        yield Refusal(
            "the engine has one scheme for all experts of a layer, and these differ",
            "quantize with one width for the experts, and a group_size that divides both of their widths",
            mixed,
        )


def refuse_permuted(weights: Iterable[PackedWeight], permutes_rows: Callable[[str], bool]) -> Iterator[Refusal]:
    """Refuses AWQ and GPTQ weights whose rows vLLM permutes in other files, and needs in that order."""
    yield from refuse_where(
        weights,
        lambda weight: permutes_rows(weight.path),
        "vLLM needs the rows of q and k of this model permuted, and does not permute those of AWQ and GPTQ",
        "quantize with sym=True and export as compressed-tensors, or leave these layers out with "
        "modules_to_not_convert",
    )


def refuse_reshaped(weights: Iterable[PackedWeight], reshapes_packed: Callable[[str], bool]) -> Iterator[Refusal]:
    """Refuses weights whose tensors vLLM reshapes by heads, whatever they hold."""
    yield from refuse_where(
        weights,
        lambda weight: reshapes_packed(weight.path),
        "vLLM reshapes the tensors of q, k and v of this model by heads, and packed ones have other shapes",
        'quantize with modules_to_not_convert=["query_key_value"]',
    )
