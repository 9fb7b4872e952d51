"""A real vLLM engine serves text models: experts, latent attention, embeddings without a configuration of their own."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.integrations.vllm import engine, models
from tests.integrations.vllm.answers import TIE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not engine.PYTHON, reason="QAIG_VLLM_PYTHON names no Python with vLLM: `make vllm` makes one"),
    pytest.mark.skipif(engine.IS_SHORT, reason="the long form: `make vllm`"),
]
OPTIONS = ("--compilation-config", '{"custom_ops": ["-rotary_embedding"]}')
"""vLLM 0.32's rotation on the CPU leaves most rows of a latent query as they are, in full precision, too."""


@pytest.mark.parametrize(
    ("make", "settings", "options"),
    [(models.make_deepseek, models.DEEPSEEK, OPTIONS), (models.make_mixtral, models.MIXTRAL, ())],
    ids=["deepseek", "mixtral"],
)
def test_the_engine_completes_as_transformers_does(
    make: Callable[[Path, Path], Path], settings: dict, options: tuple[str, ...], tiny_vlm_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from transformers_qaig import QAIGConfig

    source = make(tmp_path / "full", tiny_vlm_path)
    config = QAIGConfig(recipe="rtn", **settings)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "packed")
    choose = random.Random(0)
    prompts = [[choose.randrange(3, model.config.vocab_size) for _ in range(4 + i % 30)] for i in range(100)]
    with (
        engine.served(tmp_path / "packed", tmp_path / "log", *options) as address,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda prompt: engine.complete(address, prompt), prompts))
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    for prompt, answer in zip(prompts, answers):
        with torch.no_grad():
            logits = ours(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        behind = logits.amax(-1) - logits.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
        assert behind.max() <= TIE[torch.float32], (prompt, answer)
    assert len(set(map(tuple, answers))) > 50
