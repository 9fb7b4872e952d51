"""Plans of one layer, and what they say of it."""

from typing import Any

ENTRY = {"bits": 4, "group_size": 32, "sym": False}
SCHEME = {"bits": 3, "group_size": -1, "sym": True}


def rotated(rotation: Any) -> dict[str, Any]:
    return {"layers.0.q_proj": {"bits": 4, "group_size": 64, "sym": False, "rotation": rotation}}
