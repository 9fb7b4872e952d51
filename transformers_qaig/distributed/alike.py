"""`require_alike`: checks that all processes of a run were given the same configuration, model and data.

Otherwise they would exchange values that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..utils.errors import SettingError
from .ranks import Ranks


def require_alike(ranks: Ranks, describe: Callable[[], Mapping[str, str]]) -> None:
    """Compares what the processes of a run were given.

    Args:
        ranks: all of them; a single one compares nothing.
        describe: returns name → text, or hash, of what this process was given.

    Raises:
        SettingError: something differs; the message names it.
    """
    if ranks.size == 1:
        return
    of_ranks = ranks.gather(dict(describe()))
    different = [name for name in of_ranks[0] if len({of_rank[name] for of_rank in of_ranks}) > 1]
    if different:
        raise SettingError(
            f"the processes of this run were given different {' and '.join(different)}: give each one the same "
            "configuration, model and data, in the same order."
        )
