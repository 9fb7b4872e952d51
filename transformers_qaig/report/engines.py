"""Text of a model card about engines that serve a quantized folder, and the address of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata

VLLM_TRIED = "tried with its engine for x86 CPUs only"
"""How far serving by the plugin for vLLM was run."""


def vllm_row(repo_id: str) -> tuple[str, str]:
    """Returns the row of the table "for, run" for a model, or for what stands for its name."""
    return f"vLLM, in whose environment this package is installed; {VLLM_TRIED}", f"`vllm serve {repo_id}`"


def repository() -> str:
    """Returns how a card names the source of this package: the addresses of pyproject.toml, the repository's first."""
    try:
        pairs = metadata("transformers-qaig").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a clone that is not installed
        pairs = []
    addresses = dict(pair.split(", ", 1) for pair in pairs if ", " in pair)
    for name in ("Repository", "Source", "Homepage"):
        if name in addresses:
            return f"its repository, {addresses[name]}"
    return "its repository" + "".join(f" ({name.lower()}: {address})" for name, address in addresses.items())
