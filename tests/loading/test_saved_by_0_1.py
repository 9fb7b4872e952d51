"""Checkpoints that release 0.1 saved, of the tiny LLaVA in `tests.families`: they load silently and to the bit.

`rtn`: W3. `budget`: 4.4 bits by `cost="path"`, `fuse_groups`, recipe `fast` with other `stages`, an override.
`rotated`: W4A8, everywhere rotated, with tower and head, one layer left out.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.families import build, samples
from transformers_qaig import BitBudget

FOLDER = Path(__file__).parent / "saved_by_0_1"


@pytest.mark.parametrize("name", ["rtn", "budget", "rotated"])
def test_a_checkpoint_of_0_1_loads_answers_and_is_saved_with_the_same_tensors(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = AutoModelForImageTextToText.from_pretrained(FOLDER / name)
        inputs = samples(build("llava")[1], 1)[0]
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            found = model(**inputs).logits[0, -1].float()
        model.save_pretrained(tmp_path)
    expected = load_file(FOLDER / name / "answer.safetensors")["logits"]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # other kernels add bfloat16 in another order
    old, new = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path))
    assert old.keys() == new.keys()
    assert all(torch.equal(tensor, new[key]) for key, tensor in old.items())
    before, after = (
        json.loads((folder / "config.json").read_text())["quantization_config"] for folder in (FOLDER / name, tmp_path)
    )
    assert before["plan"] == after["plan"]
    assert before["activation_bits"] == after["activation_bits"]
    assert not {"target_bits", "cost", "stages"} & after.keys()


def test_its_settings_mean_the_same() -> None:
    config = AutoModelForImageTextToText.from_pretrained(FOLDER / "budget").config.quantization_config
    assert config.budget == BitBudget(4.4, candidates=(2, 3, 4), cost="integrated_gradients", fuse=True)
    assert config.recipe.name == "fast"
    assert config.recipe.changes == {"asymmetric": 0.5, "ig_steps": 2, "equalize_gqa": False}
    assert config.overrides == {"*.o_proj": 8}
