"""Errors that more than one room raises, and the reason in an error of the system."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting does not fit the model or this machine. It is raised before any work was begun."""

    exit_code = 2


def reason(error: Exception) -> str:
    """Returns why a file cannot be used, without its path, which the message around it has already."""
    return getattr(error, "strerror", None) or str(error)
