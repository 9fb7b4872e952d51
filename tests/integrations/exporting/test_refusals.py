"""What cannot be exported is refused at once, with its layers and a remedy, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

import transformers_qaig
from tests.integrations.exporting.conftest import Quantized
from transformers_qaig.integrations.exporting.refusals import ExportError
from transformers_qaig.integrations.exporting.run import FORMATS
from transformers_qaig.integrations.exporting.saved_model import SavedModel
from transformers_qaig.utils.errors import SettingError
from transformers_qaig_cli import main
from transformers_qaig_cli.export import FORMATS as FORMATS_OF_THE_COMMAND


def test_the_command_offers_every_format() -> None:
    assert tuple(FORMATS) == FORMATS_OF_THE_COMMAND


@pytest.mark.parametrize("name", ["mlx", "awq", "gptq", "compressed-tensors"])
def test_rotated_weights_are_refused_by_every_format(name: str, quantized: Quantized, tmp_path: Path) -> None:
    source = quantized(recipe={"name": "custom", "rotation": "all"})
    with pytest.raises(ExportError, match=r"rotated input.*down_proj.*rotation"):
        transformers_qaig.export(source, tmp_path / "out", format=name)
    assert not list(tmp_path.iterdir())


def test_all_reasons_are_told_at_once(quantized: Quantized, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = quantized(bits=7, embedding_bits=4, activation_bits=8)
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "awq"]) == 2
    said = capsys.readouterr().err
    assert "nothing was written" in said
    assert all(word in said for word in ("takes 4 bits", "rounded to 8 bits", "no packed embeddings"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("awq", r"takes 4 bits, and these layers have 3, 8 \(.*q_proj.*again with bits=4"),
        ("gptq", r"takes 4, 8 bits, and these layers have 3 \(.*q_proj.*with bits=4(.|\n)*quantize with sym=True"),
        ("gguf", r"8-bit code.*\(.*down_proj.*again with bits=4.*sym=True(.|\n)*float16.*down_proj.*with bits=4"),
        ("compressed-tensors", r"takes one scheme for all.*\(.*again with bits=4.*sym=True.*engine='vllm'"),
    ],
)
def test_widths_that_the_default_may_choose_are_refused_with_the_setting_to_give(
    name: str, said: str, quantized: Quantized, tmp_path: Path
) -> None:
    source = quantized(overrides={"*.[qkv]_proj": 3, "*.down_proj": 8})
    with pytest.raises(ExportError, match=said):
        transformers_qaig.export(source, tmp_path / "out", format=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("sliding_window", 8, "full attention"), ("hidden_act", "gelu", "computes silu")],
)
def test_a_language_model_that_llama_cpp_would_run_in_another_way(
    setting: str, value: object, said: str, quantized: Quantized
) -> None:
    language = pytest.importorskip("transformers_qaig.integrations.exporting.gguf.language", exc_type=ImportError)
    saved = SavedModel(quantized())
    assert not list(language.refusals(saved))
    setattr(saved.model.config.get_text_config(decoder=True), setting, value)
    assert [said in str(refusal) for refusal in language.refusals(saved)] == [True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "onnx"}, "`format` must be one of"),
        ({"engine": "vlm"}, "`engine` must be one of"),
        ({"model": "no/such/folder"}, "hf download"),
    ],
)
def test_a_wrong_argument_names_itself(change: dict, said: str, quantized: Quantized, tmp_path: Path) -> None:
    arguments = {"model": quantized(), "out": tmp_path / "out", "format": "compressed-tensors", **change}
    with pytest.raises(SettingError, match=said):
        transformers_qaig.export(**arguments)


def test_other_folders_are_refused(quantized: Quantized, llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SettingError, match="in full precision"):
        transformers_qaig.export(llava, out, format="mlx")
    broken = shutil.copytree(quantized(), tmp_path / "broken")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(SettingError, match="a pickle, which is never read"):
        transformers_qaig.export(broken, out, format="mlx")
    config = json.loads((broken / "config.json").read_text())
    (broken / "pytorch_model.bin").rename(broken / "model.safetensors")
    next(iter(config["quantization_config"]["plan"].values()))["bits"] = 5
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="damaged or does not match"):
        transformers_qaig.export(broken, out, format="mlx")
    with pytest.raises(SettingError, match="is not empty"):
        transformers_qaig.export(quantized(), broken, format="mlx")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SettingError, match="link is a link to nothing"):
        transformers_qaig.export(quantized(), tmp_path / "link", format="mlx")
    assert not out.exists()


def test_a_model_in_memory_is_exported_with_what_lies_beside_it(quantized: Quantized, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized())
    transformers_qaig.export(model, tmp_path / "out", format="compressed-tensors")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    card = (tmp_path / "out/README.md").read_text()
    assert "in the format compressed-tensors" in card
    assert "import transformers_qaig" not in card
