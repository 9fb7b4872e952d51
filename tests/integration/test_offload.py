"""The folders of offloaded models: each its own, and gone when it is not read any more."""

import copy
import gc
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText as Auto

from tests.families import build
from tests.lifecycle import logits
from transformers_qaig import QAIGConfig
from transformers_qaig.loading.offload_folder import PREFIX

MAP = {"": "cpu", "model.language_model.layers.1": "disk"}


def quantize(folder: Path, offload: Path | None = None) -> nn.Module:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn")
    where = {} if offload is None else {"device_map": MAP, "offload_folder": offload}
    return Auto.from_pretrained(folder, quantization_config=config, **where)


def folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.name.startswith(PREFIX) and path.is_dir()]


def test_two_models_at_once_have_their_own_weights(llava: Path, tmp_path: Path) -> None:
    build("llava", seed=1)[0].save_pretrained(tmp_path / "other")
    models = [(quantize(folder, tmp_path / "offload"), quantize(folder)) for folder in (llava, tmp_path / "other")]
    assert len(folders(tmp_path / "offload")) == 2
    for offloaded, wanted in models:
        assert torch.equal(logits(offloaded, llava), logits(wanted, llava))
        offloaded.save_pretrained(tmp_path / "saved")
        assert torch.equal(logits(Auto.from_pretrained(tmp_path / "saved"), llava), logits(wanted, llava))


def test_an_index_that_lies_there_is_not_believed(llava: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.1.input_layernorm.weight"
    (tmp_path / f"{name}.dat").write_bytes(bytes(256))
    (tmp_path / "index.json").write_text(json.dumps({name: {"dtype": "float32", "shape": [64]}}))
    assert torch.equal(logits(quantize(llava, tmp_path), llava), logits(quantize(llava), llava))
    assert (tmp_path / "index.json").exists()  # nor touched


def test_the_folder_goes_with_the_last_that_reads_it(llava: Path, tmp_path: Path) -> None:
    model = quantize(llava, tmp_path)
    part = model.model.language_model
    copied = copy.deepcopy(part.layers[1].mlp)
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        before = part(ids).last_hidden_state
    del model
    gc.collect()
    with torch.no_grad():
        assert torch.equal(part(ids).last_hidden_state, before)
    del part
    gc.collect()
    assert len(folders(tmp_path)) == 1
    del copied
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_nothing(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("calibration failed")

    monkeypatch.setattr("transformers_qaig.calibration.pipeline.calibrate", fail)
    with pytest.raises(RuntimeError, match="calibration failed"):
        quantize(llava, tmp_path)
    gc.collect()
    assert not list(tmp_path.iterdir())
