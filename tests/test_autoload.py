"""Models load where nobody imports the package; `import torch` calls the hook in an installation."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path

import pytest
from torch import nn

import transformers_qaig
import transformers_qaig_autoload as autoload
from tests.lifecycle import run

ROOT = Path(__file__).parents[1]
LOAD = """
import sys, torch
import transformers_qaig_autoload
transformers_qaig_autoload.install()  # which `import torch` does where the package is installed
from transformers import AutoModelForImageTextToText, pipeline
assert "transformers_qaig" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained({folder!r})
print(type(model.model.language_model.layers[0].mlp.up_proj).__name__)
pipeline("image-text-to-text", model={folder!r})
"""


def test_a_model_loads_without_the_import(quantized: tuple[nn.Module, Path]) -> None:
    done = run(LOAD.format(folder=str(quantized[1])))
    assert done.returncode == 0, done.stderr
    assert "QAIGLinear" in done.stdout


def test_it_can_be_switched_off(quantized: tuple[nn.Module, Path]) -> None:
    done = run(LOAD.format(folder=str(quantized[1])), QAIG_AUTOLOAD="0", COLUMNS="400")
    assert done.returncode != 0
    assert "transformers-qaig" in done.stderr + done.stdout  # what the guard says


def test_every_import_of_torch_may_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "transformers.quantizers.auto", raising=False)
    times = []
    for _ in range(5):
        start = time.process_time()
        importlib.reload(autoload).install()
        times.append(time.process_time() - start)
    assert min(times) < 5e-3


def test_looking_for_a_module_does_not_count_as_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looked_for.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    calls: list[int] = []
    autoload.when_imported("looked_for", lambda: calls.append(1))
    assert importlib.util.find_spec("looked_for")
    assert not calls
    module = importlib.import_module("looked_for")
    assert calls == [1]
    importlib.reload(module)
    assert calls == [1]
    monkeypatch.delitem(sys.modules, "looked_for")


def test_a_library_that_cannot_be_supported_is_still_imported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "transformers_qaig.integrations.nowhere", None)
    transformers_qaig._support("Library", "nowhere")
    monkeypatch.setattr(transformers_qaig, "import_module", lambda *_: 1 / 0)
    transformers_qaig._support("Library", "nowhere")
    assert caplog.text.count("This version of Library is not supported") == 2


def test_the_entry_points_name_what_is_there() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(groups) == {"torch.backends", "lmms_eval.models", "vllm.general_plugins", "sglang.srt.plugins"}
    for group in groups.values():
        for target in group.values():
            module, _, name = target.partition(":")
            assert callable(getattr(importlib.import_module(module), name)), target
    assert autoload.lmms_eval_models() == []
