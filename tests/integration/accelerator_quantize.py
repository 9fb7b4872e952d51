"""Run as a process: quantizes tiny models on the pretended accelerator and on the CPU, and prints a JSON line for each.

python -m tests.integration.accelerator_quantize CASE...
"""

import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tools.pretend_accelerator import pretend

pretend.load()

import tests.conftest  # noqa: E402, F401  (before Transformers: makes processors importable)

# isort: split
import torch  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from tests.families import build, conversations, samples, save  # noqa: E402
from tests.integration.accelerator_cases import BEST, CASES, OTHERS  # noqa: E402
from transformers_qaig import QAIGConfig  # noqa: E402
from transformers_qaig.execution.offload import offloaded  # noqa: E402
from transformers_qaig.execution.paused_forward import PausedForwards  # noqa: E402
from transformers_qaig.rounding import hessian as moments  # noqa: E402
from transformers_qaig.rounding.gptq import gptq_on_best_grid  # noqa: E402
from transformers_qaig.rounding.hessian import Hessian, inverse_factor, second_moment  # noqa: E402
from transformers_qaig.rounding.quant_grid import minmax_grid  # noqa: E402


def quantize(folder: Path, device: str, settings: dict[str, Any]) -> dict[str, Any]:
    run = {"device": device, **settings.get("calibration", {})}
    settings = {"group_size": 32, "dataset": conversations(6), **settings, "calibration": run}
    dtype, multiplied, product = settings.pop("dtype", "float32"), set[str](), moments.product

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        multiplied.add(str(a.dtype))
        return product(a, b)

    with patch.object(moments, "product", watched):
        load, config = AutoModelForImageTextToText.from_pretrained, QAIGConfig(**settings)
        model = load(folder, dtype=dtype, quantization_config=config)
    report = model.qaig_report
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "errors": {block.path: block.error for block in report.targets},
        "bits": report.bits_per_weight,
        "resumed": [block.resumed for block in report.targets],
        "devices": sorted({str(tensor.device) for tensor in tensors}),
        "multiplied": sorted(multiplied),
    }


def placed(folder: Path) -> dict[str, Any]:
    """A model that is put on the accelerator: quantized towards it, saved, loaded there, moved there."""
    inputs = samples(AutoProcessor.from_pretrained(folder), 1)[0]
    load = AutoModelForImageTextToText.from_pretrained
    config = QAIGConfig(bits=3, group_size=32, dataset=conversations(4))  # no device named: the accelerator
    made = load(folder, dtype=torch.float32, quantization_config=config, device_map=pretend.DEVICE)
    made.save_pretrained(folder / "quantized")
    here = load(folder / "quantized", dtype=torch.float32)
    there = load(folder / "quantized", dtype=torch.float32, device_map=pretend.DEVICE)
    with torch.no_grad():
        expected = here(**inputs).logits
        on_device = {name: value.to(pretend.DEVICE) for name, value in inputs.items()}
        models = {"made": made, "loaded": there, "moved": here.to(pretend.DEVICE)}
        found = {name: model(**on_device).logits for name, model in models.items()}
        generated = there.generate(**on_device, max_new_tokens=4, do_sample=False)
    return {
        "devices": sorted({str(tensor.device) for tensor in (*found.values(), generated)}),
        "differences": {name: float((logits.cpu() - expected).abs().max()) for name, logits in found.items()},
    }


def resumed(folder: Path) -> dict[str, Any]:
    """A run whose blocks are all finished, with both kinds of work folders."""
    settings = {
        "budget": {"bits": 4.5, "candidates": (3, 4), "cost": "fisher"},
        "calibration": {"work_dir": str(folder / "work")},
    }
    first, again = (quantize(folder, pretend.DEVICE, settings) for _ in range(2))
    return {"devices": again["devices"], "same": again["errors"] == first["errors"], "resumed": again["resumed"]}


def by_default(folder: Path) -> dict[str, Any]:
    """The accelerator as the default device of everything: where the model is to be, and nothing else changes."""
    rows = {}
    for device in (pretend.DEVICE, "cpu"):
        torch.set_default_device(device)
        rows[device] = quantize(folder, pretend.DEVICE, {"budget": {"bits": 4.5, "candidates": (2, 4)}, "recipe": BEST})
    torch.set_default_device(None)
    return rows


def refused() -> str:
    """What a product with a tensor that was left on the CPU says."""
    try:
        return str(torch.ones(2, 2, device=pretend.DEVICE) @ torch.ones(2, 2))
    except RuntimeError as error:
        return str(error)


def counted() -> dict[str, int]:
    """What the accelerator counts while 1000 floats are made there, resized to 2000, joined by 500 and freed."""
    before = pretend.bytes_in_use()
    pretend.reset_peak()
    x = torch.ones(1000, device=pretend.DEVICE)
    made = pretend.bytes_in_use() - before
    x.resize_(2000)
    resized = pretend.bytes_in_use() - before
    y = torch.ones(500, device=pretend.DEVICE)
    del x, y
    freed = pretend.bytes_in_use() - before
    peak = pretend.peak_bytes() - before
    pretend.reset_peak()
    return {"made": made, "resized": resized, "freed": freed, "peak": peak, "reset": pretend.peak_bytes() - before}


def copies() -> dict[str, float]:
    """The most that stands on the accelerator beside a matrix of second moments, in units of its bytes."""
    channels = 512
    x = torch.randn(1, 600, channels, device=pretend.DEVICE)
    weight = torch.randn(channels, channels, device=pretend.DEVICE)
    unit = channels**2 * 4

    def peak(run: Callable[[], object]) -> float:
        before = pretend.bytes_in_use()
        pretend.reset_peak()
        run()
        return (pretend.peak_bytes() - before) / unit

    moment = second_moment([(x, torch.ones(1, 600, device=pretend.DEVICE))])
    hessian = Hessian.of(moment)
    arguments = {"bits": 3, "group_size": 64, "sym": False, "storage_dtype": torch.bfloat16}
    grids = [minmax_grid(weight, shrink=1 - i / 20, **arguments) for i in range(10)]
    with patch.object(moments, "STRIPE", 32):  # small beside the matrix, as it is where matrices are large
        factor = peak(lambda: inverse_factor(moment, 0.01, hessian.order))
    before = pretend.bytes_in_use()
    gptq = peak(lambda: gptq_on_best_grid(weight, hessian, grids))
    return {"factor": factor, "gptq": gptq, "left": pretend.bytes_in_use() - before}


def waiting() -> dict[str, Any]:
    """What forwards that stand at the first block hold on the accelerator, and whether an interrupt moves weights."""
    model, processor = build("qwen3_vl")
    inputs = [
        {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in s.items()} for s in samples(processor, 3)
    ]
    blocks = list(model.get_decoder().layers)
    places = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    before = pretend.bytes_in_use()
    with offloaded(model, blocks, pretend.DEVICE) as memory, PausedForwards(model, blocks, inputs) as forwards:
        calls = forwards.inputs(0)
        visiting = pretend.bytes_in_use() - before
        memory.release()
        held = pretend.bytes_in_use() - before
        devices = sorted({str(call.args[0].device) for call in calls.values()})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model.model.visual.merger.register_forward_hook(interrupt)
    with contextlib.suppress(KeyboardInterrupt), offloaded(model, blocks, pretend.DEVICE), torch.no_grad():
        model(**inputs[0])
    after = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    tower = sum(p.nbytes for p in model.model.visual.parameters())
    return {"visiting": visiting >= tower, "held": held, "devices": devices, "in place": after == places}


def main() -> None:
    print(json.dumps({"case": "copies", **copies()}))
    print(json.dumps({"case": "waiting", **waiting()}))
    print(json.dumps({"case": "bytes", **counted()}))
    print(json.dumps({"case": "a tensor elsewhere", "refused": refused()}))
    with tempfile.TemporaryDirectory() as folder:
        save("llava", Path(folder), dtype=torch.float32)
        print(json.dumps({"case": "placed", **placed(Path(folder))}), flush=True)
        print(json.dumps({"case": "resumed", **resumed(Path(folder))}), flush=True)
        print(json.dumps({"case": "by default", **by_default(Path(folder))}), flush=True)
    for name in sys.argv[1:]:
        family, settings = {**CASES, **OTHERS}[name]
        with tempfile.TemporaryDirectory() as folder:
            save(family, Path(folder), dtype=torch.float32)
            try:
                row = {device: quantize(Path(folder), device, settings) for device in (pretend.DEVICE, "cpu")}
            except Exception:
                row = {"failure": traceback.format_exc()}
        print(json.dumps({"case": name, **row}), flush=True)


if __name__ == "__main__":
    main()
