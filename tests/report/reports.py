"""Records of made-up runs, for tests of the page."""

import base64
import io
import random
from typing import Any

from PIL import Image

from transformers_qaig.report.record import KIND, VERSION

LIST = "model.language_model.layers"
TOKENS = 600


def record(blocks: int, *, experts: int = 0, weighs_tokens: bool = True, name: str = "some/model") -> dict[str, Any]:
    """A finished run with a budget, as its file holds it."""
    chance = random.Random(0)
    parent = "mlp.experts.*" if experts else "mlp"
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"{parent}.{n}_proj" for n in ("gate", "up", "down")]
    layers = []
    for block in range(blocks):
        for layer in names:
            few = chance.randrange(1, experts) if "experts" in layer else 0
            widths = {"2": few, "3": experts - few} if few else {str(chance.choice([2, 3, 4, 8])): 1}
            layers.append({"block": f"{LIST}.{block}", "name": layer, "widths": widths})
    layers += [{"block": f"model.vision.blocks.{i}", "name": "attn.qkv", "widths": {"8": 1}} for i in range(27)]
    layers.append({"block": "lm_head", "name": "", "widths": {"8": 1}})
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((192, 144)).save(file, "JPEG")
    pictures = [base64.b64encode(file.getvalue()).decode()]
    view = {"tokens": TOKENS, "words": [f" word{t}" for t in range(TOKENS)], "picture_tokens": list(range(5, 197))}
    codes = base64.b64encode(bytes(chance.randrange(256) for _ in range(TOKENS))).decode()
    weights = {str(s): {"most": 3.0, "codes": codes} for s in range(8)}
    sizes = [("language model's blocks", [2, 3, 4, 8], 14e9, 3e9), ("model.vision", [8], 1.3e9, 0.7e9)]
    sizes += [("lm_head", [], 1.1e9, 1.1e9), ("model.embed_tokens", [], 1.1e9, 1.1e9)]
    return {
        "kind": KIND, "version": VERSION, "written_by": "transformers_qaig 0", "model": name, "recipe": "default",
        "repeat": "QAIGConfig(budget=3.2)", "targets_in_all": blocks, "samples": 128, "tokens": 50_000,
        "lengths": [chance.randrange(100, 600) for _ in range(128)], "left_out": {}, "seconds": 3600.0,
        "times": {"samples": 12.0, "calibration": 3588.0}, "bytes_per_sample": 1e6, "bits_per_weight": 3.2,
        "facts": [["stored bits", "3.20"]], "config": {},
        "sizes": [dict(zip(("name", "bits", "before", "after"), size)) for size in sizes],
        "layers": layers,
        "targets": [
            {
                "path": f"{LIST}.{i}", "error": 1e-5 * 1.1**i, "entering": 1e-5 * 1.1 ** (i - 1) if i else 0.0,
                "pictures": 2e-5 * 1.1**i, "text": 5e-6 * 1.1**i, "seconds": 30.0, "memory": 8 << 30,
                "device_memory": 0, "accepted": 8, "rejected": 1, "rejected_steps": ["rotate mlp.down_proj"],
                "to_nearest": {}, "averaged": {}, "resumed": False,
            }
            for i in range(blocks)
        ],
        "prices": {
            "cost": "fisher", "layers": [], "knee": 6, "uniform": [[3.3, 2.6e9, 0.02], [4.3, 3e9, 0.004]],
            "front": [[2.2 + 0.15 * k, 2e9 + 1e8 * k, 10 ** (-1 - 0.2 * k)] for k in range(17)],
            "chosen": [3.2, 2.5e9, 0.0101],
        },
        "views": [{"index": i, "pictures": pictures, "grid": [12, 16], **view} for i in range(8)],
        "token_weights": {f"{LIST}.{i}": weights for i in range(blocks)} if weighs_tokens else {},
    }  # fmt: skip
