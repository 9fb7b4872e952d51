"""`examples/lora.py` runs: fewer pictures than a user takes."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("peft", minversion="0.21.2")
EXAMPLE = Path(__file__).parents[3] / "examples" / "lora.py"


@pytest.mark.slow
def test_the_example_trains_and_saves_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("lora_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(EXAMPLE.parent / "tiny-vlm")
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "PICTURES", 4)
    monkeypatch.setattr(example, "QUESTIONS", 1)
    monkeypatch.setattr(example, "OUT", tmp_path)
    example.main()
    said = capsys.readouterr().out
    assert "right after training" in said
    assert (tmp_path / "adapter_model.safetensors").is_file()
