"""What C code prints is kept out of standard output, which works again afterwards."""

import os

import pytest

from transformers_qaig.utils.stdout import silenced_stdout


def test_what_is_written_to_the_descriptor_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced_stdout():
        os.write(1, b"from C")
    os.write(1, b"kept")
    assert capfd.readouterr().out == "kept"


def test_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), silenced_stdout():
        raise KeyError
    os.write(1, b"kept")
    assert capfd.readouterr().out == "kept"
