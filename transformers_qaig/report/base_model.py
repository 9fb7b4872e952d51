"""`BaseModel`: what a model card takes over from the unquantized model: where it is, its licence, its languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from ..loading.source import Source
from .hub_names import HUB, repository_id

FIELDS = ("license", "license_name", "license_link", "language")
"""Metadata of a card that hold for the quantized weights as well."""
_CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/\w+$")
"""Where `snapshot_download` puts a model."""
_LARGEST_CARD, _LONGEST_VALUE = 1 << 20, 500
_REMOTE = re.compile(
    r"^\s*url\s*=\s*(?:https://(?:[^@/\s]+@)?huggingface\.co/|git@hf\.co:)([\w.-]+/[\w.-]+?)/?\s*$", re.M
)


@dataclass(frozen=True)
class BaseModel:
    """The unquantized model.

    Attributes:
        repo_id: on the Hub, as `owner/name`; None for a folder of unknown origin.
        metadata: those of [`FIELDS`] that its card has; each a text or a list of texts.
    """

    repo_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, token: str | bool | None = None) -> BaseModel:
        """Reads the card beside the weights. A folder names its origin if it was cloned from the Hub.

        Args:
            source: of the weights; the card of a repository is downloaded.
            token: for a gated repository.
        """
        repo_id = _origin(Path(source.name)) if Path(source.name).is_dir() else repository_id(source.name)
        card = source.file("README.md", token=token)
        return cls(repo_id, _metadata(card, repo_id) if card is not None else {})


def _origin(folder: Path) -> str | None:
    """Returns the repository on the Hub that `folder` was cloned or downloaded from."""
    cached = _CACHED.search(folder.absolute().as_posix())
    if cached:
        return "/".join(cached.groups())
    try:
        found = _REMOTE.search((folder / ".git" / "config").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1].removesuffix(".git") if found else None


def _metadata(card: Path, repo_id: str | None) -> dict[str, Any]:
    """Reads what counts of a card's metadata; a card is somebody else's file, so other types are passed over."""
    try:
        read = metadata_load(card) if card.stat().st_size <= _LARGEST_CARD else None
    except Exception:  # no valid YAML, no text
        return {}
    found: dict[str, Any] = {name: value for name in FIELDS if _is_text(value := (read or {}).get(name))}
    link = found.get("license_link")
    if isinstance(link, str) and not link.startswith("https://"):  # of a file in the base's repository
        found.pop("license_link")
        if repo_id is not None and re.fullmatch(r"[\w./-]+", link):
            found["license_link"] = f"{HUB}/{repo_id}/blob/main/{link.removeprefix('./')}"
    return found


def _is_text(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(text, str) and len(text) <= _LONGEST_VALUE for text in values)
