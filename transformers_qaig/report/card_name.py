"""Gives a model card that is copied the name of the copy: in its title, its commands and its metadata."""

from __future__ import annotations

import json
import re

MARK = "<!-- Written by transformers-qaig. Without this line the card is kept when the model is pushed again. -->"
FOLDER, NO_TITLE = "FOLDER", "Quantized vision-language model"
"""What stands for the place of these files, and the title, where they are unknown."""
_ADDRESS = re.compile(r'pipeline\("image-text-to-text", model="([^"\n]+)"\)')
_BASE = re.compile(r"^base_model: *(\S+) *$", re.M)
_MEASURED = re.compile(r"^(model-index:\n- name: ).*$", re.M)


def title_of(repo_id: str | None, base: str | None) -> str:
    """Returns the title of a card: the last part of the model's name on the Hub, or of its base's."""
    return (repo_id or base or NO_TITLE).split("/")[-1]


def renamed(card: str, repo_id: str | None, folder_name: str) -> str:
    """Returns a card of this package for a copy of the model; one that somebody wrote is returned as it is.

    Args:
        card: text of the README.md of the model that was copied.
        repo_id: of the copy; None if it is a folder, which the card does not name in its commands.
        folder_name: name of the copy beside measured figures, where there is no `repo_id`.
    """
    found = _ADDRESS.search(card)
    if MARK not in card or found is None:
        return card
    old, new, base = found[1], repo_id or FOLDER, _BASE.search(card)
    card = card.replace(f'"{old}"', f'"{new}"').replace(f"`vllm serve {old}`", f"`vllm serve {new}`")
    title, measured = title_of(repo_id, base and base[1]), repo_id.split("/")[-1] if repo_id else folder_name
    card = re.sub(rf"^{re.escape(MARK)}\n+# .*$", lambda _: f"{MARK}\n\n# {title}", card, count=1, flags=re.M)
    return _MEASURED.sub(lambda line: f"{line[1]}{json.dumps(measured)}", card)
