"""Runs a forward pass up to a call of one module, and no further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class _Reached(Exception):
    """Ends a forward pass once the module is reached. `args[0]` is the list that the call was put into."""


def first_call(
    module: nn.Module, run: Callable[[], Any], *, after: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Runs a forward pass until it calls `module`, and ends it there.

    Args:
        module: where to stop; the call does not run.
        run: the forward pass.
        after: how many calls run before the one at which to stop.

    Returns:
        the arguments of the call, as they are after the module's other hooks; None if `run` never gets there.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        if len(calls) <= after:
            return
        # A new exception: one that this function held would hold its traceback, and so every tensor of the forward.
        raise _Reached(calls)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached as error:
        if error.args[0] is not calls:
            raise
    finally:
        handle.remove()
    return calls[after] if len(calls) > after else None
