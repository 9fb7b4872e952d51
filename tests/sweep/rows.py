"""One row of the support table: what works for a tiny model of a family, or why it does not."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.sweep.models import tiny
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.decoder_inputs import DecoderInputs
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.utils.errors import SettingError

LEAST = 0.9
"""The share of the blocks' weights that must be packed."""
NOT_TRIED = "not tried"


@dataclass
class Row:
    """What works for a family; each field is empty if it does, or says why not.

    Attributes:
        family: as Transformers calls it.
        built: whether the model in full precision runs, and comes back from its own file.
        coverage: share of the blocks' weights that are packed.
        experts: `none`, `packed`, or which class holds experts that stay.
        rtn, default: whether the recipe runs, with no linear rounded to nearest if it calibrates.
        round_trip: whether the saved model has equal logits once it is loaded.
        generate: whether the loaded model writes.
        tower, head: whether these parts can be packed.
        refused: why the model is refused before its weights are read.
    """

    family: str
    built: str = NOT_TRIED
    coverage: float = 0.0
    experts: str = ""
    rtn: str = NOT_TRIED
    default: str = NOT_TRIED
    round_trip: str = NOT_TRIED
    generate: str = NOT_TRIED
    tower: str = NOT_TRIED
    head: str = NOT_TRIED
    refused: str = ""

    @property
    def works(self) -> bool:
        """Whether blocks are packed by both recipes, saved, loaded, and the model writes."""
        steps = (self.built, self.rtn, self.default, self.round_trip, self.generate)
        return self.coverage >= LEAST and not any(steps)


def row_of(family: str) -> Row:
    """Quantizes a family's tiny model, saves it, loads it, and lets it write."""
    row = Row(family)
    with tempfile.TemporaryDirectory() as folder:
        with _told(row, "built"):
            model, samples = tiny(family)
            sample = _inputs(model, samples[0])
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder)
            assert _alike(model, again, sample), "in full precision it does not come back from its file"
        if any(Path(folder).iterdir()):
            _quantize(row, model, samples, sample, Path(folder))
    return row


def _quantize(row: Row, model: Any, samples: list[dict[str, Tensor]], sample: dict[str, Tensor], folder: Path) -> None:
    calibration = CalibrationConfig(min_coverage=LEAST)

    def quantized(recipe: str, **settings: int) -> Any:
        config = QAIGConfig(recipe=recipe, group_size=32, dataset=samples, calibration=calibration, **settings)
        return type(model).from_pretrained(folder, quantization_config=config)

    with _told(row, "rtn"):
        quantized("rtn")
    if row.refused:
        return
    with _told(row, "default"):
        packed = quantized("default")
        row.coverage, row.experts = round(packed.qaig_report.coverage.packed_fraction, 4), _experts(model, packed)
        nearest = [path for block in packed.qaig_report.targets for path in block.to_nearest]
        assert not nearest, f"rounded to nearest: {nearest[0]}"
    if not row.coverage:
        return
    with _told(row, "round_trip"):
        packed.save_pretrained(folder / "packed")
        loaded = type(model).from_pretrained(folder / "packed")
        assert _alike(packed, loaded, sample), "other logits"
    with _told(row, "generate"):
        prompt = {name: value for name, value in sample.items() if not name.startswith("decoder")}
        if model.can_generate():  # one that moves a robot does not
            loaded.generate(**prompt, max_new_tokens=3, do_sample=False)
    for field, setting in (("tower", "vision_bits"), ("head", "lm_head_bits")):
        with _told(row, field, part=True):
            _logits(quantized("rtn", **{setting: 4}), sample)


def _inputs(model: nn.Module, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    decoder = DecoderInputs.of(model)
    return decoder(sample) if decoder else {name: value for name, value in sample.items() if name != "labels"}


def _logits(model: Any, sample: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**copy.copy(sample), use_cache=False).logits


def _alike(model: Any, loaded: Any, sample: dict[str, Tensor]) -> bool:
    """Whether both have equal tensors, and logits that are equal except for where the file begins in memory.

    A product may differ in its last bits with the alignment of a weight.
    """
    tensors = loaded.state_dict()
    if not all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items()):
        return False
    return torch.allclose(_logits(model, sample), _logits(loaded, sample), rtol=1e-5, atol=1e-5)


def _experts(model: nn.Module, packed: Any) -> str:
    """Says whether stacks of experts are packed, and which class holds those that are not."""
    left = {
        type(model.get_submodule(path.rpartition(".")[0])).__name__
        for path in packed.qaig_report.coverage.skipped
        if (parameter := dict(model.named_parameters()).get(path)) is not None and parameter.ndim == 3
    }
    if left:
        return f"not {', '.join(sorted(left))}"
    return "packed" if any(isinstance(module, QAIGExperts) for module in packed.modules()) else "none"


@contextlib.contextmanager
def _told(row: Row, field: str, *, part: bool = False) -> Iterator[None]:
    """Fills in a field with what goes wrong in the context; a model that is refused is that, not broken.

    Args:
        row: to be filled in.
        field: its name.
        part: whether a refusal concerns only a part of the model.
    """
    try:
        yield
    except Exception as error:
        setattr(row, field, _short(error))
        if isinstance(error, SettingError) and not part:
            row.refused = _short(error)
    else:
        setattr(row, field, "")


def _short(error: Exception) -> str:
    name = "" if isinstance(error, (SettingError, AssertionError)) else f"{type(error).__name__}: "
    text = " ".join(f"{name}{error}".split())
    return text if len(text) <= 160 else f"{text[:159]}…"
