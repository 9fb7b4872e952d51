"""Processes that were given different things are told which."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from transformers_qaig.distributed import ALONE, Ranks
from transformers_qaig.distributed.alike import require_alike
from transformers_qaig.utils.errors import SettingError


@dataclass
class Told:
    """Ranks of which one is this process and the others said `others`."""

    others: list[dict[str, str]]

    @property
    def size(self) -> int:
        return 1 + len(self.others)

    def gather(self, mine: Any) -> list[Any]:
        return [mine, *self.others]


def test_one_process_is_not_even_asked() -> None:
    require_alike(ALONE, lambda: pytest.fail("asked"))


def test_what_differs_is_named_and_what_is_equal_is_not() -> None:
    others = [{"settings": "a", "samples": "1"}, {"settings": "b", "samples": "1"}]
    with pytest.raises(SettingError, match="were given different settings: give"):
        require_alike(cast(Ranks, Told(others)), lambda: {"settings": "a", "samples": "1"})
    with pytest.raises(SettingError, match="different settings and samples: give"):
        require_alike(cast(Ranks, Told(others)), lambda: {"settings": "a", "samples": "2"})
    require_alike(cast(Ranks, Told([others[0]] * 2)), lambda: dict(others[0]))
