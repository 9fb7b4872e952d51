"""`transformers-qaig evaluate` on a model with an adapter, on checkpoints of other methods, and on hostile text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.integrations.peft.test_lora import randomised
from transformers_qaig import QAIGConfig
from transformers_qaig.cli import evaluate, evaluated_models
from transformers_qaig_cli import main

LORA = peft.LoraConfig(target_modules="all-linear", r=4)
Figures = Callable[..., dict[str, Any]]


@pytest.fixture
def figures(chats: Path, capsys: pytest.CaptureFixture[str]) -> Figures:
    """Runs the command on the conversations, and returns its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["evaluate", *map(str, arguments), "--dataset", str(chats), "--json", "--quiet"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_an_adapter_is_measured_on_its_model_and_on_that_alone(
    quantized: tuple[nn.Module, Path], chats: Path, tmp_path: Path, figures: Figures
) -> None:
    base = AutoModelForImageTextToText.from_pretrained(quantized[1])
    model = randomised(peft.get_peft_model(base, LORA))
    model.save_pretrained(tmp_path / "adapter")
    plain = figures(quantized[1])
    found = figures(quantized[1], "--adapter", tmp_path / "adapter", "--reference", quantized[1])
    assert found["adapter"] == str(tmp_path / "adapter")
    assert found["kl"]["mean"] > 1e-3  # the same model without it
    assert found["reference_figures"]["perplexity"] == plain["perplexity"]
    # A script of its own: the model as PEFT has it, one question at a time.
    assert found["perplexity"]["mean"] == pytest.approx(perplexity(model, quantized[1], chats), rel=1e-4)


def perplexity(model: nn.Module, folder: Path, chats: Path) -> float:
    """Of the answers' tokens, from the model's logits."""
    processor, losses = AutoProcessor.from_pretrained(folder), []
    for record in map(json.loads, chats.read_text().splitlines()):
        picture = {"type": "image", "image": Image.open(chats.parent / record["image"])}
        asked = [{"role": "user", "content": [picture, {"type": "text", "text": record["question"]}]}]
        said = [*asked, {"role": "assistant", "content": [{"type": "text", "text": record["answer"]}]}]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True, **options)["input_ids"][0]
        inputs = processor.apply_chat_template(said, **options)
        ids = inputs["input_ids"][0]
        start = int((ids[: len(prompt)] != prompt).nonzero()[0])
        stop = start + 1 + int((ids[start:] == model.generation_config.eos_token_id).nonzero()[0])
        with torch.no_grad():
            log_p = model(**inputs).logits.float().log_softmax(-1)[0, start - 1 : stop - 1]
        losses.append(-log_p.gather(1, ids[start:stop, None])[:, 0])
    return float(torch.cat(losses).mean().exp())


def test_an_adapter_that_cannot_be_put_on_is_refused_before_a_model_is_loaded(
    llava: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "load_model", None)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompt.save_pretrained(tmp_path / "prompt")
    LORA.save_pretrained(tmp_path / "lora")
    for adapter, more, said in (
        (llava, (), "cannot be read as an adapter"),
        (tmp_path / "prompt", (), "adds tokens to the prompt"),
        (tmp_path / "lora", ("--card",), "give one"),
    ):
        (tmp_path / "README.md").touch()
        model = tmp_path if more else llava
        assert main(["evaluate", str(model), str(chats), "--adapter", str(adapter), *more]) == 2
        assert said in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(3, 5)})
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert main(["evaluate", str(llava), str(chats), "--adapter", str(tmp_path)]) == 1
    assert f"--adapter {tmp_path} does not fit {llava}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{}", "PEFT knows no `peft_type` None"),
        ('{"peft_type": "NEW"}', "PEFT knows no `peft_type` 'NEW'"),
        ("[" * 10_000, "maximum recursion depth"),
    ],
)
def test_damaged_settings_of_an_adapter_are_told_of(
    settings: str, said: str, llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text(settings)
    assert main(["evaluate", str(llava), str(chats), "--adapter", str(tmp_path)]) == 2
    assert f"--adapter {tmp_path}: it cannot be read as an adapter: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "of another type"])
def test_a_damaged_adapter_is_told_of_as_damaged(
    damage: str, llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(llava)
    peft.get_peft_model(model, LORA).save_pretrained(tmp_path)
    if damage == "cut":  # a download that was interrupted
        weights = tmp_path / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        settings = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": "4"}))
    assert main(["evaluate", str(llava), str(chats), "--adapter", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    said = ": its weights cannot be read: " if damage == "cut" else f" does not fit {llava}: "
    assert f"--adapter {tmp_path}{said}" in told
    assert "--traceback" not in told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            "is a GPTQ checkpoint: Transformers loads it with optimum",
        ),
        ({"quant_method": "awq", "bits": 4}, "Loading an AWQ quantized model requires gptqmodel."),
    ],
)
def test_a_missing_library_is_told_before_any_weight_is_read(
    settings: dict[str, Any], said: str, llava: Path, chats: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(evaluated_models, "GPTQ_LIBRARIES", ("optimum", "no_such_library"))
    monkeypatch.setattr("transformers.quantizers.quantizer_awq.is_gptqmodel_available", lambda: False)
    config = json.loads((llava / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))  # no weights
    assert main(["evaluate", str(tmp_path), str(chats), "--reference", str(llava)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "pip install" in told
    assert "Error" not in told
    assert "Predictions" not in told


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_gptq_and_awq_files_are_measured_where_their_library_is_installed(
    kind: str, llava: Path, tmp_path: Path, figures: Figures
) -> None:
    pytest.importorskip("gptqmodel")
    own, other = tmp_path / "qaig", tmp_path / kind
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", sym=True)
    AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config).save_pretrained(own)
    AutoProcessor.from_pretrained(llava).save_pretrained(own)
    assert main(["export", str(own), str(other), "--format", kind]) == 0
    kl = [figures(other, "--reference", reference)["kl"]["mean"] for reference in (own, llava)]
    assert abs(kl[0]) < 1e-3 * kl[1]


def test_text_of_the_data_gives_the_terminal_no_orders(
    llava: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(chats.read_text().splitlines()[0]) | {
        "task": "\x1b[31mred\ud800",
        "image": str(chats.parent / "0.png"),
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    page, picture = tmp_path / "page.html", tmp_path / "tasks.png"
    written = ["--html", str(page), "--plot", str(picture), "--reference", str(llava)]
    assert main(["evaluate", str(llava), str(tmp_path / "data.jsonl"), *written]) == 0
    said = capsys.readouterr().out
    assert r"\x1b[31mred\ud800" in said
    assert "\x1b" not in said
    assert r"\x1b[31mred\ud800" in page.read_text()
