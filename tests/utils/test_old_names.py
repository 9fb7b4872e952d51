"""A name of an earlier release warns whoever reads it."""

import pytest

from transformers_qaig.utils.old_names import warn_of_old_name


def read() -> None:
    warn_of_old_name("Old", "New")


def test_the_warning_names_both_and_points_to_the_reader() -> None:
    with pytest.warns(FutureWarning, match="`Old` ends with the next release. Use `New`") as found:
        read()
    assert found[0].filename == __file__
    assert found[0].lineno > read.__code__.co_firstlineno + 1, "the call of `read`, not the one in it"
