"""MLX, AWQ, GPTQ and GGUF: a reader of the format's own words finds our weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import transformers_qaig
from tests.integrations.exporting.conftest import Quantized
from transformers_qaig.formats.reference import dequantize
from transformers_qaig.integrations.exporting.saved_model import SavedModel

PATH = "language_model.model.layers.0.mlp.down_proj"
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which place in a word holds each of 8 channels."""


def ours(folder: Path) -> tuple[Tensor, Tensor]:
    """Our weight in float32 and the size of its step."""
    saved = SavedModel(folder)
    weight = saved.weight(saved.packed["model.language_model.layers.0.mlp.down_proj"])
    return dequantize(weight, torch.float32), weight.scale.float().repeat_interleave(32, 1)


def exported(source: Path, out: Path, **options: str) -> tuple[dict[str, Tensor], dict]:
    transformers_qaig.export(source, out, **options)
    return load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


def fields(words: Tensor, bits: int) -> Tensor:
    """Reads a bit stream along the last dimension with numpy: least significant bit first."""
    data = np.ascontiguousarray(words.numpy()).view(np.uint8)
    each = np.unpackbits(data, axis=-1, bitorder="little").reshape(len(data), -1, bits)
    return torch.from_numpy((each * (1 << np.arange(bits))).sum(-1))


@pytest.mark.parametrize("settings", [{"bits": 3}, {"bits": 4, "sym": True}, {"bits": 6}], ids=["3", "4sym", "6"])
def test_mlx_reads_our_weight(settings: dict, quantized: Quantized, tmp_path: Path) -> None:
    source = quantized(**settings)
    tensors, config = exported(source, tmp_path / "out", format="mlx")
    scales, biases = (tensors[f"{PATH}.{name}"].float().repeat_interleave(32, 1) for name in ("scales", "biases"))
    got = scales * fields(tensors[f"{PATH}.weight"].view(torch.int32), settings["bits"]) + biases
    want, step = ours(source)
    assert config["quantization"] == {"group_size": 32, "bits": settings["bits"], "mode": "affine"}
    assert ((got - want).abs() <= (1e-6 if "sym" in settings else 0.1) * step + 1e-7).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_itself_decodes_our_weight(bits: int, quantized: Quantized, tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core")
    source = quantized(bits=bits)
    tensors, config = exported(source, tmp_path / "out", format="mlx")
    scales, biases = (mlx.array(tensors[f"{PATH}.{name}"].float().numpy()) for name in ("scales", "biases"))
    words = mlx.array(tensors[f"{PATH}.weight"].view(torch.int32).numpy().view(np.uint32))
    got = mlx.dequantize(words, scales, biases, group_size=config["quantization"]["group_size"], bits=bits)
    want, step = ours(source)
    assert ((torch.from_numpy(np.array(got)) - want).abs() <= 0.1 * step).all()


def test_mlx_names_the_layers_of_another_width(quantized: Quantized, tmp_path: Path) -> None:
    source = quantized(overrides={"*.layers.0.mlp.down_proj": {"bits": 8}})
    tensors, config = exported(source, tmp_path / "out", format="mlx")
    assert config["quantization"][PATH] == {"group_size": 32, "bits": 8}
    assert tensors[f"{PATH}.biases"].dtype == torch.float32  # in 16 bits its error would be half a step


def test_awq_reads_our_weight(quantized: Quantized, tmp_path: Path) -> None:
    source = quantized()
    tensors, config = exported(source, tmp_path / "out", format="awq")
    settings = config["quantization_config"]
    assert (settings["bits"], settings["group_size"], settings["version"]) == (4, 32, "gemm")
    assert {"vision_tower", "multi_modal_projector", "lm_head"} <= set(settings["modules_to_not_convert"])
    codes, zeros = (
        fields(tensors[f"{PATH}.{name}"], 4).view(tensors[f"{PATH}.{name}"].shape[0], -1, 8)[..., AWQ_ORDER].flatten(1)
        for name in ("qweight", "qzeros")
    )
    scales = tensors[f"{PATH}.scales"].float()
    got = (codes - zeros.repeat_interleave(32, 0)) * scales.repeat_interleave(32, 0)
    want, step = ours(source)
    assert ((got.t() - want).abs() <= 0.01 * step).all()


@pytest.mark.parametrize(
    ("settings", "engine", "version"),
    [({"sym": True}, "vllm", "gptq"), ({"bits": 3}, "gptqmodel", "gptq_v2")],
    ids=["symmetric", "3 bits, zero points"],
)
def test_gptq_reads_our_weight(settings: dict, engine: str, version: str, quantized: Quantized, tmp_path: Path) -> None:
    source, bits = quantized(**settings), settings.get("bits", 4)
    tensors, config = exported(source, tmp_path / "out", format="gptq", engine=engine)
    assert config["quantization_config"]["checkpoint_format"] == version
    codes = fields(tensors[f"{PATH}.qweight"].t(), bits).t()
    zeros = fields(tensors[f"{PATH}.qzeros"], bits) + (version == "gptq")
    group = tensors[f"{PATH}.g_idx"].long()
    got = (codes - zeros[group]) * tensors[f"{PATH}.scales"].float()[group]
    want, step = ours(source)
    assert ((got.t() - want).abs() <= 0.01 * step).all()


@pytest.mark.parametrize(("overrides", "told"), [({}, False), ({"*.down_proj": 3}, True)])
def test_gptq_says_that_transformers_reads_one_scheme(
    overrides: dict, told: bool, quantized: Quantized, tmp_path: Path
) -> None:
    source = quantized(sym=True, overrides=overrides)
    done = transformers_qaig.export(source, tmp_path / "out", format="gptq", engine="gptqmodel")
    assert any("load it with GPTQModel.load" in note for note in done.notes) == told


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"sym": True}, "Q4_0"), ({}, "Q4_1"), ({"bits": 3}, "Q4_0"), ({"bits": 5, "sym": True}, "Q8_0")],
    ids=["4sym", "4", "3", "5sym"],
)
def test_gguf_reads_our_weight(settings: dict, kind: str, quantized: Quantized, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source = quantized(**settings)
    transformers_qaig.export(source, tmp_path / "out", format="gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    found = tensors["blk.0.ffn_down.weight"]
    assert found.tensor_type.name == kind
    want, step = ours(source)
    got = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))
    assert ((got - want).abs() <= 0.02 * step).all()
    assert {"v.blk.0.attn_q.weight", "mm.0.weight", "mm.2.bias", "v.patch_embd.weight"} <= {
        tensor.name for tensor in gguf.GGUFReader(tmp_path / "out/mmproj.gguf").tensors
    }
