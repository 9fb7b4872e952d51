"""Tiny models of every image-text-to-text class of Transformers, made from the classes' own default configurations.

Sizes are shrunk by the names that configurations share, so that most families that are new in Transformers need no line
here. `python -m tests.sweep` prints a table of what works; names after it choose some families.
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from tests import unusual
from tests.tiny_models.unusual_parts import texts
from tests.tiny_models.weights import randomise
from transformers_qaig import CalibrationConfig, QAIGConfig
from transformers_qaig.data.decoder_inputs import DecoderInputs

VOCABULARY, LAYERS, LARGEST = 320, 2, 40_000_000
SIZES = {
    r"(num_)?(hidden_|encoder_|decoder_)?layers|depth|n_layers?|num_blocks": LAYERS,
    r"(text_|vision_|encoder_|decoder_|out_|patch_embed_|cross_attention_|backbone_|mm_)?hidden_size": 64,
    r"d_model|(vision_|word_)?embed_(proj_)?dim|n_embd|hidden_dim": 64,
    r"projection_dim|(vision_)?output_dim|(text|out)_dim": 64,
    r"(moe_|shared_expert_|moe_shared_expert_|expert_)?intermediate_size(_mlp)?|ffn_(hidden_size|dim)|d_ff|mlp_dim": 96,
    r"(encoder|decoder)_ffn_dim": 96,
    r"(num_|encoder_|decoder_)?(attention_)?heads|n_heads?|n_head": 4,
    r"num_key_value_heads|num_kv_heads|num_experts_per_tok|top_k_experts|moe_k|moe_topk": 2,
    r"(qk_|v_|global_|attention_)?head_dim|d_kv|qk_nope_head_dim|qk_rope_head_dim|linear_(key|value)_head_dim": 16,
    r"n_routed_experts|num_(local_)?experts|n_experts|moe_num_experts": 4,
    r"n_group|topk_group": 1,
    r"linear_num_(key|value)_heads": 2,
    r"q_lora_rank|kv_lora_rank|laurel_rank|hidden_size_per_layer_input": 32,
    r"vocab_size(_per_layer_input)?": VOCABULARY,
    r"sliding_window|attention_chunk_size": 16,
    r"max_position_embeddings|max_sequence_length|n_positions": 256,
}
TOKEN = re.compile(r".*token_(id|index)$|.*_token_ids$")
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
MROPE = ("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "hunyuan_vl")
MLA = ("kimi_k25", "mistral4", "glm5_next")
FROM_UNUSUAL = {
    "blip-2": "blip_2_opt",
    "florence2": "florence_2",
    "gemma4": "gemma_4",
    "idefics": "idefics",
    "pix2struct": "pix2struct",
    "pp_formulanet": "formula_net",
    "t5gemma2": "t5_gemma_2",
    "udop": "udop",
    "vision-encoder-decoder": "vision_encoder_decoder",
}


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """Shrinks the sizes of a configuration, and moves its special tokens into the small vocabulary."""
    return {name: _small(name, value) for name, value in values.items()}


def _small(name: str, value: Any) -> Any:
    if name == "per_layer_config":
        return {}
    if name == "activation_sparsity_pattern":
        return [0.0] * LAYERS
    if isinstance(value, dict):
        return value if "rope" in name else _shrunk({str(key): each for key, each in value.items()})
    if isinstance(value, list) and name in ("layer_types", "mlp_layer_types"):
        kinds = sorted(set(value), key=value.index)
        return (kinds * LAYERS)[-LAYERS:]
    if isinstance(value, list) and name == "intermediate_size":
        return [96] * LAYERS
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if TOKEN.match(name) and value >= VOCABULARY:
        return 4 + sum(map(ord, name)) % 60
    return next((min(size, value) for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), value)


def tiny(name: str) -> tuple[Any, list[dict[str, Tensor]]]:
    """Builds the tiny model of a family, with samples.

    Raises:
        Exception: whatever the family's own code raises; MemoryError if the sizes that have other names are too large.
    """
    if name in FROM_UNUSUAL:
        return unusual.UNUSUAL[FROM_UNUSUAL[name]]()
    values = _shrunk(CONFIG_MAPPING[name]().to_dict())
    text = values.get("text_config", values)
    if name in MROPE:
        text["rope_parameters"] = ROPE
    if name in MLA:
        text["num_key_value_heads"] = 4
    config, names = CONFIG_MAPPING[name](**values), CLASSES[name]
    cls = getattr(hf, names if isinstance(names, str) else names[0])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} weights: some size has a name that is not shrunk")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
    randomise(model, 0)
    return model, texts(first_id=70)


@dataclass
class Row:
    """What works for a family; each field is empty if it does, or says why not."""

    family: str
    coverage: str = ""
    calibrates: str = "not tried"
    round_trip: str = "not tried"
    generate: str = "not tried"
    tower: str = "not tried"
    head: str = "not tried"
    built: str = ""

    @property
    def is_sound(self) -> bool:
        return not (self.built or self.calibrates or self.round_trip or self.generate)


def row_of(name: str) -> Row:
    """Quantizes a family's tiny model, saves it, loads it, and lets it write."""
    row = Row(name)
    with tempfile.TemporaryDirectory() as folder:
        with _told(row, "built"):
            model, samples = tiny(name)
            decoder = DecoderInputs.of(model)
            sample = decoder(samples[0]) if decoder else {k: v for k, v in samples[0].items() if k != "labels"}
            with torch.no_grad():
                model(**sample, use_cache=False)
            model.save_pretrained(folder)
        if row.built:
            return row
        calibration = CalibrationConfig(min_coverage=0.9)
        with _told(row, "calibrates"):
            config = QAIGConfig(recipe="gptq", group_size=32, dataset=samples, calibration=calibration)
            packed = type(model).from_pretrained(folder, quantization_config=config)
            row.coverage = f"{packed.qaig_report.coverage.share:.0%}"
            nearest = [path for block in packed.qaig_report.targets for path in block.to_nearest]
            assert not nearest, f"rounded to nearest: {nearest[0]}"
        if row.calibrates and not row.coverage:
            return row
        with _told(row, "round_trip"):
            packed.save_pretrained(Path(folder) / "packed")
            loaded = type(model).from_pretrained(Path(folder) / "packed")
            with torch.no_grad():
                pair = [each(**sample, use_cache=False).logits for each in (packed, loaded)]
            assert torch.equal(*pair), "other logits"
        with _told(row, "generate"):
            prompt = {key: value for key, value in sample.items() if not key.startswith("decoder")}
            loaded.generate(**prompt, max_new_tokens=3, do_sample=False)
        for field, name in (("tower", "vision_bits"), ("head", "lm_head_bits")):
            with _told(row, field):
                config = QAIGConfig(recipe="rtn", group_size=32, calibration=calibration, **{name: 4})
                found: nn.Module = type(model).from_pretrained(folder, quantization_config=config)
                with torch.no_grad():
                    found(**sample, use_cache=False)
    return row


@contextlib.contextmanager
def _told(row: Row, field: str) -> Any:
    """Fills in a field with what goes wrong in the context."""
    try:
        yield
        setattr(row, field, "")
    except Exception as error:
        setattr(row, field, _short(error))


def _short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 120 else f"{text[:119]}…"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    names = [field.name for field in fields(Row) if field.name != "built"]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    mark: Callable[[str], str] = lambda text: text.replace("|", "/") or "yes"  # noqa: E731
    for row in rows:
        cells = [row.family, f"not built: {row.built}"] if row.built else [row.family, row.coverage or "–"]
        cells += [] if row.built else [mark(getattr(row, name)) for name in names[2:]]
        lines.append("| " + " | ".join(cells + [""] * (len(names) - len(cells))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    print(table([row_of(name) for name in sys.argv[1:] or CLASSES]))
