"""Text of a file reaches a terminal without anything that the terminal would obey."""

import pytest

from transformers_qaig.utils.printable import printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b2J\x00\r", r"\x9b2J\x00\r"),
        ("abc\u202e\u2066", r"abc\u202e\u2066"),
        ("\u061cabc\u2028\u2029", r"\u061cabc\u2028\u2029"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_other_text_stays() -> None:
    text = "Wärme, 温度, 🤗\n\tin lines"
    assert printable(text) == text


def test_printing_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    say("\x1b[2Jgone")
    assert capsys.readouterr().out == "\\x1b[2Jgone\n"
