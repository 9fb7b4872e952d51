"""Ways to damage what lies in a checkpoint's folder, at random but by a seed: config.json as a whole, odd files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.config_damage import Damage, any_value, short

CLASSES = (
    None, [], ["Foo"], ["LlamaForCausalLM"], "LlavaForConditionalGeneration", [1], {"a": 1}, [None], ["__init__"],
)  # fmt: skip
INDEXES = (
    "[1]", "{}", '{"weight_map":[1]}', '{"weight_map":{"a":1}}', '{"weight_map":{"b":["x"]}}', "[" * 100_000, "\0",
)  # fmt: skip
CONFIG_WAYS = (
    "settings", "no settings", "text's", "moved", "two plans", "classes", "tie", "layers", "bytes",
)  # fmt: skip


def change_config(folder: Path, random: Random) -> Damage:
    """Changes what config.json says beside and around the quantization's settings."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    settings, text = config["quantization_config"], config["text_config"]
    way = random.choice(CONFIG_WAYS)
    if way == "settings":
        config["quantization_config"] = random.choice((None, [1], [settings], "qaig", json.dumps(settings), 1, True))
    elif way == "no settings":
        del config["quantization_config"]
    elif way == "text's":
        text["quantization_config"] = random.choice((None, [1], "qaig", {"quant_method": "gptq"}, any_value(random)))
    elif way == "moved":
        text["quantization_config"] = config.pop("quantization_config")
    elif way == "two plans":
        other = {path: {**entry, "bits": 2} for path, entry in settings["plan"].items()}
        text["quantization_config"] = {**settings, "plan": other}
    elif way == "classes":
        config["architectures"] = random.choice(CLASSES)
    elif way == "tie":
        where = random.choice((config, text))
        where["tie_word_embeddings"] = not where.get("tie_word_embeddings")
    elif way == "layers":
        text["num_hidden_layers"] = random.choice((0, 1, 3, 5, -1, None, "2"))
    content = json.dumps(config)
    if way == "bytes":
        content = _garbled(content, random)
    file.write_text(content)
    return Damage(f"config as a whole: {way}, {short(config.get('quantization_config'))}")


def _garbled(content: str, random: Random) -> str:
    return random.choice(
        (
            content[: random.randrange(len(content))],
            f"{content[:-1]}, {json.dumps('quantization_config')}: {{}}}}",
            content.replace('"seed": 0', '"seed": NaN', 1),
            content.replace('"seed": 0', '"seed": 1e999', 1),
            content.replace('"plan": {', '"plan": {"x": {"bits": 4, "group_size": 32, "sym": false}, ', 1),
            content + "{}",
            "\ufeff" + content,
        )
    )


def change_folder(folder: Path, random: Random) -> Damage:
    """Puts pipes, devices, links and other files beside the weights or in their place."""
    way = random.choice(sorted(WAYS))
    WAYS[way](folder, sorted(folder.glob("*.safetensors"))[0], random)
    return Damage(f"folder: {way}")


def _index_text(folder: Path, weights: Path, random: Random) -> None:
    (folder / "a.safetensors.index.json").write_text(random.choice(INDEXES))


def _link_elsewhere(folder: Path, weights: Path, random: Random) -> None:
    elsewhere = folder.parent / "elsewhere.safetensors"
    shutil.move(weights, elsewhere)
    weights.symlink_to(elsewhere)


def _in_the_place_of(weights: Path, target: str) -> None:
    weights.unlink()
    weights.symlink_to(target)


WAYS: dict[str, Callable[[Path, Path, Random], Any]] = {
    "index is a pipe": lambda folder, weights, random: os.mkfifo(folder / "a.safetensors.index.json"),
    "index is a device": lambda folder, weights, random: (folder / "a.safetensors.index.json").symlink_to("/dev/zero"),
    "index is a folder": lambda folder, weights, random: (folder / "a.safetensors.index.json").mkdir(),
    "another index": _index_text,
    "more weights": lambda folder, weights, random: shutil.copy(weights, folder / "z.safetensors"),
    "a pipe beside": lambda folder, weights, random: os.mkfifo(folder / "z.safetensors"),
    "weights elsewhere": _link_elsewhere,
    "a circle": lambda folder, weights, random: _in_the_place_of(weights, weights.name),
    "a link to nothing": lambda folder, weights, random: _in_the_place_of(weights, "nowhere"),
    "a device": lambda folder, weights, random: _in_the_place_of(weights, "/dev/zero"),
}
