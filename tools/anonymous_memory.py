"""Watches this process's anonymous memory: pages that the kernel could not read again from a file. Linux alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 0.002
"""Seconds between two looks."""


def rss_anon() -> int:
    """Bytes of anonymous memory at present."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon: run this on Linux.")


@contextmanager
def peak_rss_anon() -> Iterator[list[int]]:
    """Watches the most anonymous memory within the context; it is the one item of the list."""
    peak, over = [rss_anon()], threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL):
            peak[0] = max(peak[0], rss_anon())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak[0] = max(peak[0], rss_anon())
