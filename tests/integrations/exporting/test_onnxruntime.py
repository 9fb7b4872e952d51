"""ONNX Runtime GenAI converts AWQ and GPTQ exports of a language model, and computes what our model does.

`pip install onnxruntime-genai onnx onnx-ir`, and the rest of `dev`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import transformers_qaig
from tests.tiny_models.parts import tokenizer_of
from transformers_qaig import QAIGConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("onnxruntime_genai") and find_spec("onnx_ir")),
        reason="there is no ONNX Runtime GenAI: `pip install onnxruntime-genai onnx onnx-ir`",
    ),
]
OFFLINE = {"HF_HUB_OFFLINE": "1"}
AS_IT_IS = ("accuracy_level=1", "nodes_to_exclude=/lm_head/MatMul")
"""By default GenAI rounds the inputs of products, and a head that is not packed, to few bits."""


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("text"), tokenizer_of({}, "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
        )  # fmt: skip
        hf.LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "settings"),
    [("awq", {}), ("gptq", {"sym": True}), ("gptq", {"sym": True, "bits": 8, "group_size": 64})],
    ids=["awq", "gptq, 4 bits", "gptq, 8 bits"],
)
def test_onnx_runtime_computes_our_logits(name: str, settings: dict, text_model: Path, tmp_path: Path) -> None:
    config = QAIGConfig(**{"bits": 4, "group_size": 32, "recipe": "rtn", **settings})
    model = hf.AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float16, quantization_config=config)
    model.save_pretrained(tmp_path / "ours")
    hf.AutoTokenizer.from_pretrained(text_model).save_pretrained(tmp_path / "ours")
    transformers_qaig.export(tmp_path / "ours", tmp_path / "out", format=name)
    ids = torch.arange(5, 69)[None]
    ours = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).dequantize()
    with torch.no_grad():
        want = ours.float()(ids).logits
    torch.testing.assert_close(computed(tmp_path, f"int{config.bits}", ids), want, rtol=0, atol=1e-4)


def computed(folder: Path, precision: str, ids: torch.Tensor) -> torch.Tensor:
    """Converts `out` below `folder`, and returns the logits of all positions."""
    onnx = folder / "onnx"
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder / "out"), "-o", str(onnx),
        "-p", precision, "-e", "cpu", "-c", str(folder / "cache"), "--extra_options", *AS_IT_IS,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | OFFLINE)
    assert done.returncode == 0, done.stderr[-4000:]
    genai: Any = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(onnx))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=ids.shape[1] + 1)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids.int().numpy())
    return torch.from_numpy(generator.get_output("logits").copy()).float()
