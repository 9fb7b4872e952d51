"""Llama 4, whose rows of q and k vLLM permutes: what it would not permute along is refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import transformers_qaig
from tests.experts import build
from transformers_qaig import QAIGConfig
from transformers_qaig.exporting.refusals import ExportError
from transformers_qaig.integrations.engines.permuted_rows import permutes_rows


@pytest.fixture(scope="module", params=[True, False], ids=["symmetric", "asymmetric"])
def llama4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """Returns a tiny Llama 4 with dense experts, and whether it is symmetric."""
    folder = tmp_path_factory.mktemp("llama4")
    build("llama4_text").save_pretrained(folder / "full")
    config = QAIGConfig(
        bits=4, group_size=32, sym=request.param, recipe="rtn", modules_to_not_convert=["feed_forward.experts"]
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "full", quantization_config=config)
    model.save_pretrained(folder / "packed")
    return folder / "packed", request.param


@pytest.mark.parametrize(
    ("format", "engine", "with_zeros", "without"),
    [
        ("compressed-tensors", "vllm", r"permutes the rows of q and k.*k_proj.*sym=True", ""),
        ("compressed-tensors", "transformers", "", ""),
        ("awq", "vllm", *[r"does not permute those of AWQ.*k_proj.*compressed-tensors"] * 2),
        ("awq", "openvino", "", ""),
        ("gptq", "vllm", *[r"does not permute those of AWQ.*k_proj.*compressed-tensors"] * 2),
        ("gptq", "gptqmodel", "", ""),
    ],
)
def test_rows_that_vllm_would_leave_in_the_wrong_order_are_refused(
    format: str, engine: str, with_zeros: str, without: str, llama4: tuple[Path, bool], tmp_path: Path
) -> None:
    folder, sym = llama4
    said = without if sym else with_zeros
    with pytest.raises(ExportError, match=said) if said else nullcontext():
        transformers_qaig.export(folder, tmp_path / "out", format=format, engine=engine)
    assert (tmp_path / "out").exists() != bool(said)


@pytest.mark.parametrize(
    ("model_type", "path", "permuted"),
    [
        ("llama4_text", "model.layers.0.self_attn.q_proj", True),
        ("llama4_text", "language_model.model.layers.0.self_attn.qkv_proj", True),
        ("llama4_text", "model.layers.0.self_attn.v_proj", False),
        ("llama4_text", "vision_model.model.layers.0.self_attn.qkv_proj", False),
        ("llama", "model.layers.0.self_attn.q_proj", False),
    ],
)
def test_only_q_and_k_of_the_language_model_of_llama_4_are_permuted(model_type: str, path: str, permuted: bool) -> None:
    assert permutes_rows(model_type, path) == permuted
