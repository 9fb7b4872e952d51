"""Push to the Hub and load by id, each in a process of its own, against a Hub on the loopback interface."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.fake_hub import FakeHub

COMMON = """
import conftest, json, sys
import torch
from tests import seeds
import transformers_qaig
from transformers import AutoModelForImageTextToText, AutoProcessor

def logits(model):
    torch.manual_seed(seeds.seed())
    picture = torch.full((1, 64), model.config.image_token_id)
    question = torch.randint(7, model.config.text_config.vocab_size, (1, 9))
    pixels = torch.randn(1, 3, 96, 96, dtype=model.dtype)
    with torch.no_grad():
        return model(input_ids=torch.cat([picture, question], 1), pixel_values=pixels).logits
"""
PUSH = """
folder, repo, kept, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
config = transformers_qaig.QAIGConfig(**options) if options else None
model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)
torch.save(logits(model), kept)
model.push_to_hub(repo, max_shard_size="2MB")
if config is None:
    AutoProcessor.from_pretrained(folder).push_to_hub(repo)
"""
LOAD = """
repo, kept = sys.argv[1], sys.argv[2]
model, report = AutoModelForImageTextToText.from_pretrained(repo, output_loading_info=True)
assert not any(report.values()), report
assert torch.equal(logits(model), torch.load(kept))
assert AutoProcessor.from_pretrained(repo).tokenizer("cat")["input_ids"]
"""

SAVE = """
repo, cache, folder, recipe = sys.argv[1:]
config = transformers_qaig.QAIGConfig(bits=3, group_size=64, recipe=recipe, num_samples=2)
model = AutoModelForImageTextToText.from_pretrained(repo, cache_dir=cache, quantization_config=config)
model.save_pretrained(folder)
assert AutoProcessor.from_pretrained(folder).chat_template
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


def run(script: str, *arguments: object, env: dict[str, str]) -> None:
    paths = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script, *map(str, arguments)],
        env={**os.environ, **env, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_push_and_load_in_full_precision(hub: FakeHub, tiny_vlm_path: Path, tmp_path: Path) -> None:
    """The Hub itself: what works here works without us."""
    run(PUSH, tiny_vlm_path, "tester/plain", tmp_path / "logits.pt", "{}", env=hub.environment(tmp_path / "here"))
    files = hub.repositories["tester/plain"]
    assert "model.safetensors.index.json" in files
    assert sum(name.endswith(".safetensors") for name in files) > 1
    assert "generated" in files["README.md"].decode()
    run(LOAD, "tester/plain", tmp_path / "logits.pt", env=hub.environment(tmp_path / "there"))


def test_push_and_load_quantized(hub: FakeHub, tiny_vlm_path: Path, tmp_path: Path) -> None:
    """Sharded push, load by id in a new process with an empty cache, then once more without any connection."""
    options = {"bits": 3, "group_size": 64, "recipe": "rtn"}
    kept = tmp_path / "logits.pt"
    run(PUSH, tiny_vlm_path, "tester/w3", kept, json.dumps(options), env=hub.environment(tmp_path / "here"))
    files = hub.repositories["tester/w3"]
    shards = {name for name in files if name.endswith(".safetensors")}
    index = json.loads(files["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == shards
    assert len(shards) > 1
    assert json.loads(files["config.json"])["quantization_config"]["quant_method"] == "qaig"

    run(LOAD, "tester/w3", kept, env=hub.environment(tmp_path / "there"))
    asked = len(hub.requests)
    run(LOAD, "tester/w3", kept, env={**hub.environment(tmp_path / "there"), "HF_HUB_OFFLINE": "1"})
    assert len(hub.requests) == asked

    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "qaig" in card.data.tags
    assert "import transformers_qaig" in card.text
    assert 'model="tester/w3"' in card.text
    assert "`rtn`" in card.text
    assert "3 bits" in card.text
    assert "one per 64 input channels" in card.text
    size = sum(len(files[name]) for name in shards)
    assert f"{size:,} bytes" in card.text


def test_the_processor_is_looked_for_in_the_cache_of_the_weights(
    hub: FakeHub, tiny_vlm_path: Path, tmp_path: Path
) -> None:
    """Without data it is fetched to be saved; with data, and offline, it is found where it was fetched to."""
    hub.repositories["tester/source"] = {file.name: file.read_bytes() for file in tiny_vlm_path.iterdir()}
    arguments = ("tester/source", tmp_path / "cache")
    run(SAVE, *arguments, tmp_path / "one", "rtn", env=hub.environment(tmp_path / "home"))
    offline = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run(SAVE, *arguments, tmp_path / "two", "fast", env=offline)
    assert not list((tmp_path / "home").glob("hub/models--*/snapshots/*/*"))
    assert "base_model: tester/source" in (tmp_path / "two" / "README.md").read_text()
