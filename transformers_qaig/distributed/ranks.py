"""`Ranks`: the processes that quantize one model together, and what they send each other.

Every rank runs the same code on its own share of the samples. What a decision depends on is exchanged, so that all
ranks decide alike. A method here is called by all ranks, in the same order. One process alone exchanges nothing.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import GONE, RankLost
from .messages import as_bytes, received, sent

T = TypeVar("T")
S = TypeVar("S")


SILENT = 60.0
"""Seconds after which a rank with long work sends the others a sign of life."""


def place_of(error: Exception) -> int:
    """Returns the sample that an error names; -1, before all samples, if it names none."""
    return int(getattr(error, "sample", -1))


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run.

    Attributes:
        rank: of this process; 0 is the main one, which writes files and shows progress.
        size: number of processes.
        group: through which they talk; None for one process alone.
        devices: types of those from which the group can send.
        run: number of the run in this process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    devices: tuple[str, ...] = ("cpu",)
    run: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def owns(self, sample: int, every: int = 1) -> bool:
        """Whether this rank runs a sample. Both kinds are dealt out in turns: every `every`-th sample, and the others.

        Args:
            sample: its position.
            every: the distance of the samples that are held back; 1 if none are.
        """
        held, rest = divmod(sample, every)
        return (held if rest == 0 else sample - held - 1) % self.size == self.rank

    def gather(self, value: T) -> list[T]:
        """Returns the values of all ranks, in their order; tensors of several ranks are on the CPU."""
        return self.exchange([value] * self.size) if self.size > 1 else [value]

    def exchange(self, outgoing: Sequence[T]) -> list[T]:
        """Sends one value to every rank, and returns what each rank sent to this one, in their order."""
        if self.size == 1:
            return list(outgoing)
        same = all(value is outgoing[0] for value in outgoing)
        texts = [as_bytes(outgoing[0])] * self.size if same else list(map(as_bytes, outgoing))
        lengths = torch.tensor([len(text) for text in texts], device="cpu")
        arriving = torch.empty_like(lengths)
        self._talk(dist.all_to_all_single, arriving, lengths)
        sizes = arriving.tolist()
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
        payload = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)  # on the CPU, always
        self._talk(dist.all_to_all_single, buffer, payload, sizes, lengths.tolist())
        return [pickle.loads(part.numpy().tobytes()) for part in buffer.split(sizes)]

    def exchange_rows(self, part: Tensor) -> list[Tensor]:
        """Returns this rank's share of the rows of every rank's `part`, in the order of the ranks.

        Args:
            part: `[N, ...]`, alike on all ranks in shape and dtype.
        """
        home = part.device
        wire = (part if home.type in self.devices else part.cpu()).contiguous()
        counts = [len(range(*self.rows(len(part), rank).indices(len(part)))) for rank in range(self.size)]
        mine = counts[self.rank]
        found = wire.new_empty(mine * self.size, *part.shape[1:])
        self._talk(dist.all_to_all_single, found, wire, [mine] * self.size, counts)
        return [rows.to(home) for rows in found.split(mine)] if mine else []

    def rows(self, count: int, rank: int | None = None) -> slice:
        """Returns which of `count` rows a rank adds up; this rank unless one is given."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def together(self, compute: Callable[[], T], place: Callable[[Exception], int] = place_of) -> list[T]:
        """Returns what `compute` returns on every rank, in the order of the ranks.

        Args:
            compute: run on each rank.
            place: of an error. If `compute` raises on any rank, the error of the first place is raised on all.
        """
        if self.size == 1:
            return [compute()]
        error, found = None, None
        try:
            found = compute()
        except RankLost:
            raise
        except Exception as raised:
            error = raised
        gathered = self.gather((found, None if error is None else (place(error), self.rank, sent(error))))
        failures = [failure for _, failure in gathered if failure is not None]
        if failures:
            _, rank, text = min(failures, key=lambda failure: failure[:2])
            raise error if rank == self.rank and error is not None else received(text)
        return [result for result, _ in gathered]  # type: ignore[misc]

    def of_each(self, items: Iterable[tuple[int, S]], compute: Callable[[S], T]) -> list[T]:
        """Returns what `compute` makes of the items of all ranks, in the order of their places.

        Args:
            items: of this rank: place among all, item.
            compute: run on each; the error of the first place is raised on all ranks.
        """
        if self.size == 1:
            return [compute(item) for _, item in items]
        at = -1

        def all_of_mine() -> list[tuple[int, T]]:
            nonlocal at
            found = []
            for place, item in items:
                at = place
                found.append((place, compute(item)))
            return found

        gathered = self.together(all_of_mine, lambda error: at)
        return [result for _, result in sorted(chain(*gathered), key=lambda pair: pair[0])]

    def on_main(self, compute: Callable[[], T]) -> T:
        """Returns what `compute` returns on the main rank, where alone it runs; its error is raised on all."""
        return self.together(lambda: compute() if self.is_main else None)[0]  # type: ignore[return-value]

    def on_main_for_long(self, compute: Callable[[Callable[[], None]], T]) -> T:
        """Does as [`on_main`], for what takes longer than ranks wait for one that is silent.

        Args:
            compute: gets a function to call now and then, which sends the other ranks a sign of life.
        """
        if not self.is_main:
            gathered: Any = "alive"
            while isinstance(gathered, str):
                gathered = self.gather((None, None))[0]
            found, failure = gathered  # as `together` sends them
            if failure is not None:
                raise received(failure[2])
            return found
        told_at = time.monotonic()

        def alive() -> None:
            nonlocal told_at
            if self.size > 1 and time.monotonic() - told_at >= SILENT:
                self.gather("alive")
                told_at = time.monotonic()

        return self.together(lambda: compute(alive))[0]

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Leaves the other ranks with an error if this one raises within the context."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Closes the connections: a rank that still talks to this one raises [`RankLost`]."""
        if self.group is not None and self.group is not dist.GroupMember.NON_GROUP_MEMBER:
            try:
                dist.destroy_process_group(self.group)
            except (RuntimeError, ValueError, AssertionError):  # closed already
                return

    def _talk(self, operation: Callable[..., object], *args: object) -> None:
        try:
            operation(*args, group=self.group)
        except (RuntimeError, ValueError) as error:
            raise RankLost(GONE) from error


ALONE = Ranks()
"""One process that quantizes a model by itself."""
