"""What a script sets for all of PyTorch changes nothing of the result, and is there again afterwards."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForImageTextToText

from tests.lifecycle import FAST, logits
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.calibration.pipeline import calibrate
from transformers_qaig.data.loader import load_inputs
from transformers_qaig.execution.block_outputs import OutputError
from transformers_qaig.execution.torch_state import default_torch_state, flushes_denormals
from transformers_qaig.plan.allocate import allocate
from transformers_qaig.plan.build import list_schemes
from transformers_qaig.quantizer.bit_costs.measure import measure_costs


def attend_with(*kernels: SDPBackend) -> None:
    """Allows these kernels of attention alone, for good: the context is kept open."""
    STACK.enter_context(sdpa_kernel(list(kernels), set_priority=True))


STACK = ExitStack()
THREADS = torch.get_num_threads()
SETTINGS: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.bfloat16),
    "default device": lambda: torch.set_default_device("meta"),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "deterministic warnings": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "threads": lambda: torch.set_num_threads(2),
    "no gradients": lambda: torch.set_grad_enabled(False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "no oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "deterministic oneDNN": lambda: setattr(torch.backends.mkldnn, "deterministic", True),
    "deterministic cuDNN": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "attention in plain math": lambda: attend_with(SDPBackend.MATH),
    "no denormal numbers": lambda: torch.set_flush_denormal(True),
    "precision of the newer interface": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"recipe": "default", "cost": "fisher"},
    "fast": {"recipe": "fast", "cost": "fisher"},
    "mbq": {"recipe": "mbq", "cost": "integrated_gradients"},
    "paper": {
        "recipe": {"name": "paper", "token_weights": "shuffled", "rotation": "all"},
        "cost": "output_error",
    },
}


def state() -> list[Any]:
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.get_deterministic_debug_mode(),
        torch.is_grad_enabled(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.mkldnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.enabled,
        torch.backends.mkldnn.deterministic,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.flash_sdp_enabled(),
        torch._C._get_sdp_priority_order(),
        flushes_denormals(),
    ]


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_autocast_enabled("cpu", False)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(False)
    STACK.close()
    torch.backends.mkldnn.enabled = True
    torch.backends.mkldnn.deterministic = torch.backends.cudnn.deterministic = False
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends.mkldnn.conv):
        backend.fp32_precision = "none"
    torch.backends.cudnn.conv.fp32_precision = "tf32"


def quantize(folder: Path, settings: dict[str, Any], change: Callable[[], Any] = lambda: None) -> dict[str, Tensor]:
    """What each way into the package gives: options, samples, costs, packed tensors, dense weights."""
    model = AutoModelForImageTextToText.from_pretrained(folder).requires_grad_(False)
    budget = BitBudget(4.5, candidates=(2, 4), cost=settings["cost"])
    config = QAIGConfig(**FAST, budget=budget, recipe=settings["recipe"])
    change()
    changed = state()
    options, coverage = list_schemes(model, config)
    data = load_inputs(model, config)
    options = measure_costs(model, options, data, config)
    chosen = allocate(options, 4.5 * coverage.packed).schemes
    calibrate(model, {**chosen, **coverage.outside_plan}, coverage, data, config)
    assert state() == changed
    return model.state_dict()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_setting_changes_a_bit(llava: Path, recipe: str) -> None:
    def change() -> None:
        for setting in SETTINGS.values():
            setting()

    torch.set_num_threads(1)
    expected = quantize(llava, RECIPES[recipe])
    assert same(quantize(llava, RECIPES[recipe], change), expected)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", SETTINGS)
def test_nor_does_one_alone(llava: Path, name: str) -> None:
    torch.set_num_threads(1)
    expected = quantize(llava, RECIPES["fast"])
    assert same(quantize(llava, RECIPES["fast"], SETTINGS[name]), expected)


@pytest.mark.usefixtures("restored")
def test_settings_are_back_after_an_error() -> None:
    for setting in SETTINGS.values():
        setting()
    before = state()
    inside: list[Any] = []

    @default_torch_state()
    def fail() -> None:
        inside.extend(state())
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [
        torch.float32,
        torch.device("cpu"),
        False,
        0,
        True,
        *["ieee"] * 4,
        True,
        False,
        False,
        True,
        [1, 2, 0, 3, 4],
        False,
    ]
    assert state() == before


@pytest.mark.usefixtures("restored")
def test_a_model_is_quantized_runs_and_is_made_dense_under_settings(
    llava: Path, quantized: tuple[torch.nn.Module, Path]
) -> None:
    expected = logits(quantized[0], llava)
    torch.set_default_dtype(torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model = AutoModelForImageTextToText.from_pretrained(
            llava, quantization_config=QAIGConfig(bits=3, **FAST), dtype=torch.float32
        )
    torch.set_default_dtype(torch.float32)
    assert torch.equal(logits(model, llava), expected)
    weights = [m.dequantize() for m in model.modules() if hasattr(m, "weight_packed")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = model.dequantize()
    linears = {id(m.weight): m.weight for m in dense.modules() if isinstance(m, torch.nn.Linear)}
    assert all(any(torch.equal(w, other) for other in linears.values() if other.shape == w.shape) for w in weights)


def test_the_number_of_threads_changes_no_sum_of_errors() -> None:
    a, b = torch.randn(2, 1, 3000, 64)
    mask, threads, found = torch.ones(1, 3000, dtype=torch.bool), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            error = OutputError()
            error.add(a, b, mask)
            found.append((error.error, error.power))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
