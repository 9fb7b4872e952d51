"""What is read of the `from_pretrained` that is running: the names that this Transformers has for it."""

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText as Auto
from transformers import GenerationConfig

from transformers_qaig import QAIGConfig
from transformers_qaig.loading.arguments import loading_arguments
from transformers_qaig.quantizer import QAIGHfQuantizer


def test_transformers_names_what_is_read(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def stop(*_: object, **__: object) -> None:
        seen.update(loading_arguments())
        raise KeyboardInterrupt

    monkeypatch.setattr(QAIGHfQuantizer, "update_device_map", stop)
    given = {"max_memory": {"cpu": 1}, "offload_folder": "x", "generation_config": GenerationConfig()}
    with pytest.raises(KeyboardInterrupt):
        Auto.from_pretrained(llava, quantization_config=QAIGConfig(), device_map="auto", revision="main", **given)
    assert {name: seen[name] for name in given} == given
    read = {"kwargs", "download_kwargs", "from_auto_class", "from_pipeline", "pretrained_model_name_or_path"}
    read |= {"config", "subfolder", "variant"}
    assert read <= seen.keys()


def test_outside_of_from_pretrained_nothing_is_read() -> None:
    max_memory = {"cpu": 1}
    assert loading_arguments() == {}
    assert max_memory
