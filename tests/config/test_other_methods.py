"""What users of other libraries write is taken, or refused with what to write here; the guide says the same."""

import inspect
import re

import pytest
import transformers

from tests.docs.pages import ROOT, cells
from transformers_qaig import QAIGConfig
from transformers_qaig.config.other_methods import ADVICE
from transformers_qaig.config.qaig_config import argument_names

GUIDE = ROOT / "docs/guides/coming-from.md"
CODE = re.compile(r"`([^`]+)`")
ROWS = [
    (name, row[1])
    for row in cells(GUIDE)
    for name in CODE.findall(row[0].partition("(")[0])
    if name.isidentifier() and not name.endswith("Config")
]


def refusal(name: str) -> str:
    with pytest.raises(TypeError) as error:
        QAIGConfig(**{name: True})
    return str(error.value)


@pytest.mark.parametrize(("name", "here"), ROWS, ids=[name for name, _ in ROWS])
def test_each_row_of_the_guide_is_what_the_error_says(name: str, here: str) -> None:
    if name in argument_names():
        assert here == "the same" or name in CODE.findall(here)[0]
        return
    said = refusal(name)
    if here.startswith("leave out"):
        assert "Leave it out" in said
    else:
        assert any(code.partition("=")[0] in said for code in CODE.findall(here))


def test_all_foreign_arguments_are_told_at_once() -> None:
    with pytest.raises(TypeError) as error:
        QAIGConfig(desc_act=True, w_bit=4, bitz=3)
    first, second, third = str(error.value).splitlines()
    assert "`desc_act`" in first
    assert "`w_bit`. Write bits=" in second
    assert "Did you mean 'bits'?" in third


@pytest.mark.parametrize(
    "config",
    ["GPTQConfig", "AwqConfig", "CompressedTensorsConfig", "BitsAndBytesConfig", "HqqConfig", "QuantoConfig"],
)
def test_every_argument_of_the_configurations_in_transformers_is_known(config: str) -> None:
    names = set(inspect.signature(getattr(transformers, config).__init__).parameters) - {"self", "kwargs"}
    assert names <= {*ADVICE, *argument_names(), "quant_method"}


def test_all_advice_is_in_the_guide() -> None:
    missing = ADVICE.keys() - {name for name, _ in ROWS} - {"use_exllama", "exllama_config", "use_cuda_fp16"}
    assert not missing


def test_what_the_advice_writes_is_accepted() -> None:
    """Every `name=` in it is an argument of `QAIGConfig`, of what it holds, or of `from_pretrained`."""
    known = {*argument_names(), "processor", "device", "max_length", "dtype", "device_map", "zero_point"}
    for text in ADVICE.values():
        assert set(re.findall(r"(\w+)=", text)) <= known


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_a_set_of_text_that_gptqconfig_knows_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"dataset='{name}'.*without images"):
        QAIGConfig(dataset=name)
