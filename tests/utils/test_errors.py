"""Errors of settings, and why a file cannot be used."""

import errno

from transformers_qaig.utils.errors import SettingError, reason


def test_a_reason_does_not_repeat_the_path() -> None:
    assert reason(OSError(errno.ENOSPC, "No space left on device", "/a/path")) == "No space left on device"
    assert reason(ValueError("not JSON")) == "not JSON"


def test_a_setting_is_a_value_and_ends_a_command_as_a_wrong_argument_does() -> None:
    assert issubclass(SettingError, ValueError)
    assert SettingError.exit_code == 2
