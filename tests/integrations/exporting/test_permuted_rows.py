"""Llama 4, whose rows of q and k vLLM permutes, and Bloom, whose tensors it reshapes: what would not fit is refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BloomConfig

import transformers_qaig
from tests.experts import build
from transformers_qaig import QAIGConfig
from transformers_qaig.integrations.engines.permuted_rows import permutes_rows, reshapes_packed
from transformers_qaig.integrations.exporting.refusals import ExportError


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


@pytest.mark.parametrize(
    ("format", "engine"),
    [("compressed-tensors", "vllm"), ("awq", "vllm"), ("gptq", "vllm"), ("gptq", "gptqmodel")],
)
def test_tensors_of_bloom_that_vllm_would_reshape_are_refused(format: str, engine: str, tmp_path: Path) -> None:
    full = AutoModelForCausalLM.from_config(BloomConfig(hidden_size=64, n_layer=2, n_head=2, vocab_size=64))
    full.save_pretrained(tmp_path / "full")
    config = QAIGConfig(bits=4, group_size=32, sym=format != "awq", recipe="rtn")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    is_refused = engine == "vllm"
    with pytest.raises(ExportError, match=r"reshapes.*0\.\S*query_key_value") if is_refused else nullcontext():
        transformers_qaig.export(model, tmp_path / "out", format=format, engine=engine)
    assert (tmp_path / "out").exists() != is_refused


def test_only_the_fused_linear_of_bloom_is_reshaped() -> None:
    path = "transformer.h.0.self_attention.query_key_value"
    assert reshapes_packed("bloom", path)
    assert not reshapes_packed("bloom", "transformer.h.0.self_attention.dense")
    assert not reshapes_packed("gpt_neox", path)
