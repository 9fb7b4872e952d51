"""Transformers' switches for messages and progress bars reach this package."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from tests.lifecycle import FAST
from transformers_qaig import QAIGConfig
from transformers_qaig.data import sources
from transformers_qaig.utils.logging import get_logger

IMPORT = """
import logging, transformers
def state():
    return [(name, [type(h) for h in log.handlers], log.level) for name in (None, "transformers", "transformers.qaig",
        "transformers_qaig") for log in [logging.getLogger(name)]]
transformers.logging.get_verbosity()
before = state()
import transformers_qaig
assert state() == before, (before, state())
"""
SPEAK = """
import transformers_qaig
from transformers_qaig.utils.logging import get_logger
logger = get_logger("transformers_qaig.data.samples")
logger.warning("a warning"); logger.info("some information")
"""


def run(code: str, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    ran = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def test_importing_adds_no_handler_and_sets_no_level() -> None:
    run(IMPORT)


@pytest.mark.parametrize(
    ("level", "shown"),
    [({}, ["a warning"]), ({"TRANSFORMERS_VERBOSITY": "info"}, ["a warning", "some information"]),
     ({"TRANSFORMERS_VERBOSITY": "error"}, [])],
)  # fmt: skip
def test_a_process_shows_what_transformers_verbosity_asks_for(level: dict[str, str], shown: list[str]) -> None:
    said = run(SPEAK, **level)
    assert [line for line in ("a warning", "some information") if line in said] == shown


def test_set_verbosity_holds_for_every_module_of_ours() -> None:
    before = transformers.logging.get_verbosity()
    try:
        transformers.logging.set_verbosity_error()
        assert not sources.logger.isEnabledFor(logging.WARNING)
        transformers.logging.set_verbosity_info()
        assert sources.logger.isEnabledFor(logging.INFO)
    finally:
        transformers.logging.set_verbosity(before)


def test_a_logger_is_named_after_its_module() -> None:
    assert get_logger("transformers_qaig.data.sources").name == sources.logger.name == "transformers.qaig.data.sources"


def test_every_long_stage_shows_progress_unless_it_is_switched_off(
    llava: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = QAIGConfig(budget=4.5, **FAST)
    stages = ["Encoding samples", "Costs (fisher_rtn)", "First forward passes", "Quantizing ("]
    for switch, shown in ((disable_progress_bar, []), (enable_progress_bar, stages)):
        switch()
        capfd.readouterr()
        transformers.AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
        said = capfd.readouterr().err
        assert [stage for stage in stages if stage in said] == shown


def test_a_message_obeys_no_escape_of_a_file(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger("transformers_qaig.some_module")
    logger.warning("a name: %s", "\x1b[2Jgone")
    logger.warning("%d of %d", 1, 2)
    assert caplog.messages == ["a name: \\x1b[2Jgone", "1 of 2"]
