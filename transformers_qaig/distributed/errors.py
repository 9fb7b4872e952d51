"""The error that is raised where another process of a run is lost."""

from __future__ import annotations

GONE = (
    "another of the processes that quantize this model has ended or failed: look for its error above. Start the run "
    "again; with a `work_dir` it resumes, with any number of processes."
)


class RankLost(RuntimeError):
    """Another process of the run does not respond any more."""
