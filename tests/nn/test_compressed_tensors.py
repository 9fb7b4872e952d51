"""Our checkpoints are compressed-tensors checkpoints: the real package reads them."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CompressedTensorsConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests import seeds
from transformers_qaig.nn import QAIGLinear, pack, pack_zero_point

helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")

GROUP = 32
IMAGE_TOKEN = 90


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [31, 32, 33, 96])
def test_the_package_reads_and_writes_our_words(bits, columns):
    offset = 2 ** (bits - 1)
    codes = torch.randint(0, 2**bits, (7, columns), dtype=torch.uint8)
    signed = (codes.to(torch.int16) - offset).to(torch.int8)
    assert torch.equal(helpers.unpack_from_int32(pack(codes, bits), bits, codes.shape), signed)
    assert torch.equal(helpers.pack_to_int32(signed, bits), pack(codes, bits))
    zero, signed_zero = codes.t(), signed.t()  # [out_features, groups], packed along out_features
    words = pack_zero_point(zero, bits)
    assert torch.equal(helpers.unpack_from_int32(words, bits, zero.shape, packed_dim=0), signed_zero)
    assert torch.equal(helpers.pack_to_int32(signed_zero.contiguous(), bits, packed_dim=0), words)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [GROUP, -1])
def test_the_package_decompresses_our_layer_to_our_weight(bits, sym, group_size):
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    layer = round_to_nearest(nn.Linear(96, 40, bias=False), bits, sym, group_size)
    weights = weight_arguments(bits, sym, group_size)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    theirs = PackedQuantizationCompressor.decompress(dict(layer.state_dict()), scheme)["weight"]
    torch.testing.assert_close(theirs, layer.dequantize(theirs.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_symmetric_folder_loads_through_transformers_own_quantizer(bits, tmp_path):
    ours = packed_llava(bits, sym=True)
    save_as_compressed_tensors(ours, bits, True, tmp_path)
    theirs, info = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(theirs), logits(dense(ours)))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_asymmetric_folder_loads_when_dequantized(bits, tmp_path):
    """Their run-compressed route cannot size packed zero points, so the weights are expanded at load."""
    ours = packed_llava(bits, sym=False)
    save_as_compressed_tensors(ours, bits, False, tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert torch.equal(logits(theirs), logits(dense(ours)))


def round_to_nearest(linear: nn.Linear, bits: int, sym: bool, group_size: int) -> QAIGLinear:
    """Min-max grid per group, scales rounded to bfloat16 before the codes are chosen."""
    top = 2**bits - 1
    groups = linear.weight.detach().float().view(linear.out_features, -1, GROUP if group_size > 0 else 1)
    if group_size == -1:
        groups = groups.view(linear.out_features, 1, -1)
    if sym:
        scale = (2 * groups.abs().amax(-1) / top).bfloat16()
        zero = torch.full_like(scale, 2 ** (bits - 1)).float()
    else:
        scale = ((groups.amax(-1) - groups.amin(-1)) / top).bfloat16()
        zero = (-groups.amin(-1) / scale.float()).round().clamp(0, top)
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, top)
    return QAIGLinear.from_codes(
        codes.flatten(1).to(torch.uint8),
        scale,
        None if sym else zero.to(torch.uint8),
        linear.bias,
        bits=bits,
        group_size=group_size,
    )


def packed_llava(bits: int, sym: bool) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    config.dtype = torch.bfloat16
    model = AutoModelForImageTextToText.from_config(config).eval()  # `.to` would round the rotary frequencies, too
    for name, module in list(model.named_modules()):
        if "language_model" in name and isinstance(module, nn.Linear):
            model.set_submodule(name, round_to_nearest(module, bits, sym, GROUP))
    return model


def weight_arguments(bits: int, sym: bool, group_size: int) -> dict:
    strategy = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": sym, **strategy}


def save_as_compressed_tensors(model: LlavaForConditionalGeneration, bits: int, sym: bool, folder) -> None:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["re:.*language_model.*proj"], "weights": weight_arguments(bits, sym, GROUP)}
        },
        "ignore": ["lm_head", "re:.*vision.*", "re:.*multi_modal_projector.*"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def dense(model: nn.Module) -> nn.Module:
    """A copy with the packed layers dequantized: the others' arithmetic, so that logits are equal bit by bit."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, QAIGLinear):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight, linear.bias = nn.Parameter(module.dequantize()), module.bias
            model.set_submodule(name, linear)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    generator = seeds.generator(1)
    ids = torch.randint(0, IMAGE_TOKEN, (2, 12), generator=generator)
    ids[:, 2:6] = IMAGE_TOKEN
    pixels = torch.randn(2, 3, 28, 28, generator=generator).bfloat16()
    return model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
