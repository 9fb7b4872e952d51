"""Ways to quantize the tiny VLM that `accuracy.py` compares: our recipes and other libraries'.

A method is a module of this package with a function `quantize(job)`, and the settings it gets. It runs in a process of
its own (`worker.py`) in the environment of its library (`requirements/`), which knows nothing of ours: samples and
questions reach it as tensors that the model's processor made here, so that everybody calibrates on the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Method:
    """
    Attributes:
        module: module of this package.
        environment: virtual environment it runs in, a file in `requirements/`; `""` is the benchmark's own.
        settings: handed to it; what is left out has the library's own default.
        widths: bits per weight that the library can store.
        rounds_activations: it also offers 4-bit weights with 8-bit activations.
        calibrates: it reads the samples.
        calibrates_activations: it reads them for 8-bit activations.
        answers_itself: dequantized weights are not all there is to its model, which therefore answers the questions
            itself, as all do with 8-bit activations.
    """

    module: str
    environment: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    widths: tuple[int, ...] = (2, 3, 4)
    rounds_activations: bool = False
    calibrates: bool = True
    calibrates_activations: bool = False
    answers_itself: bool = False


def _recipe(name: str, calibrates: bool = True) -> Method:
    return Method("qaig", settings={"recipe": name}, rounds_activations=True, calibrates=calibrates)


def _auto_round(iters: int, **settings: Any) -> Method:
    return Method("auto_round", "auto-round", {"iters": iters, **settings}, rounds_activations=True)


def _llm_compressor(**settings: Any) -> Method:
    return Method("llm_compressor", "llm-compressor", settings, rounds_activations=True)


PEERS: dict[str, Method] = {
    # The library's default is a symmetric grid; its documentation recommends the first for 4 bits, "best" for 2.
    "auto-round": _auto_round(200, sym=True),
    "auto-round-asym": _auto_round(200, sym=False),
    "auto-round-best": _auto_round(1000, sym=True),
    "auto-round-best-asym": _auto_round(1000, sym=False),
    # The settings of its examples for VLMs and for AWQ.
    "llm-compressor-gptq": _llm_compressor(modifier="gptq", sym=True),
    "llm-compressor-gptq-asym": _llm_compressor(modifier="gptq", sym=False),
    "llm-compressor-awq": _llm_compressor(modifier="awq", sym=False, duo_scaling="both"),
    "bitsandbytes-nf4": Method("bitsandbytes", "bitsandbytes", widths=(4,), calibrates=False),
    "hqq": Method("hqq", "hqq", calibrates=False),
    "quanto": Method(
        "quanto", "quanto", widths=(2, 4), rounds_activations=True, calibrates=False, calibrates_activations=True
    ),
    "transformers-gptq": Method("transformers_gptq", "transformers-gptq"),
    "transformers-awq": Method("transformers_awq", "transformers-gptq", widths=(4,)),
}
"""Other libraries. No 8-bit activations with HQQ and nf4; Transformers' own GPTQ and AWQ paths have none either."""

OURS = ("rtn", "gptq", "awq", "mbq", "paper", "authors", "fast", "default", "best")
RECIPES = {name: _recipe(name, name != "rtn") for name in OURS}
ATTRIBUTED = "default-attributed"
"""`default` with widths by what they cost the answers, at the stored size of the width that is named."""
VARIANTS = {ATTRIBUTED: Method("qaig", settings={"recipe": "default", "attributed": True}, widths=(3, 4))}


def method(name: str) -> Method:
    """The method called `name`: one of `PEERS`, else a recipe of ours."""
    return PEERS.get(name) or RECIPES.get(name) or VARIANTS.get(name) or _recipe(name)


@dataclasses.dataclass(frozen=True)
class Job:
    """
    What a worker is asked for; travels as JSON.

    Attributes:
        method: name of the method.
        model: folder of the full-precision model.
        bits, group_size: of the weights.
        activation_bits: 16 leaves them alone.
        samples: file of the calibration samples, `tensors.py`.
        questions: file of the questions to answer, `""` for none.
        output: folder for what is found.
    """

    method: str
    model: str
    bits: int
    group_size: int
    activation_bits: int
    samples: str
    questions: str
    output: str

    @property
    def settings(self) -> Mapping[str, Any]:
        return method(self.method).settings

    @property
    def folder(self) -> Path:
        return Path(self.output)


@dataclasses.dataclass
class Quantized:
    """
    What a method made of the model.

    Attributes:
        model: answers questions the way the library would, 8-bit activations included, but in float32.
        linears: path of every quantized weight → its dequantized values, float32 `[out, in]`.
        bits_per_weight: stored bits per quantized weight, scales and zero points included.
        seconds: what the quantization took, from the loaded model on.
        settings: what the library was told, for the record.
    """

    model: torch.nn.Module
    linears: dict[str, Tensor]
    bits_per_weight: float
    seconds: float
    settings: dict[str, Any]


class Unavailable(Exception):
    """The library cannot do this job; the message says why and becomes its row."""


def stored_bits(bits: int, group_size: int, scale_bits: int = 16, zero_bits: int = 0) -> float:
    """Bits per weight with one scale and one zero point per group."""
    return bits + (scale_bits + zero_bits) / group_size
