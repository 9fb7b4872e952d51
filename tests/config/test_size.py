"""Sizes that people write."""

import pytest

from transformers_qaig.config.size import parse_memory, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("3.5GiB", int(3.5 * 2**30)), ("800 MB", 800_000_000), ("1e3", None), (4096, 4096), ("2K", 2000), ("0", None)],
)
def test_sizes(text: str | int, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="GiB"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize("size", [3, "3.5", 10**6 - 1])
def test_memory_that_names_no_unit_must_be_large(size: int | str) -> None:
    with pytest.raises(ValueError, match="name the unit"):
        parse_memory(size)
    assert parse_memory(f"{size}GB") == int(float(size) * 10**9)
    assert parse_memory(10**6) == 10**6
