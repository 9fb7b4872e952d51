"""What calibration reads and where it runs: values are checked when they are given."""

from pathlib import Path
from typing import Any

import pytest

from transformers_qaig import CalibrationConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"image": 3}}, "`columns` must map parts of a sample to columns"),
        ({"max_length": 0}, "`max_length` must be a positive integer or None, got 0"),
        ({"max_pixels": True}, "`max_pixels` must be a positive integer"),
        ({"token": ""}, "`token` must be a string, True, False or None"),
        ({"trust_remote_code": "yes"}, "`trust_remote_code` must be True or False, got 'yes'"),
        ({"expert_memory": "lots"}, "`expert_memory`: "),
        ({"device": "meta"}, "is the meta device, which computes nothing"),
        ({"device": "nonsense"}, "is no device"),
        ({"live_page": "page.txt"}, "`live_page` must be the path of an .html file, got 'page.txt'"),
    ],
)
def test_a_value_out_of_range_names_the_setting(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        CalibrationConfig(**settings)
    assert said in str(error.value)


def test_a_page_needs_its_folder(tmp_path: Path) -> None:
    CalibrationConfig(live_page=tmp_path / "page.html")
    with pytest.raises(ValueError, match="`live_page` must be a file in a folder that is there"):
        CalibrationConfig(live_page=tmp_path / "none" / "page.html")


def test_the_token_is_never_shown() -> None:
    assert "secret" not in repr(CalibrationConfig(token="secret"))
