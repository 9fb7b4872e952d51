"""What a model card says of engines that serve quantized folders: written here once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata

VLLM_TRIED = "tried with its engine for x86 CPUs only"
"""How far serving by the plugin for vLLM was run."""
VLLM_REFUSES_EXPERTS = True
"""Whether the plugin refuses a model whose experts are packed."""


def vllm_row(repo_id: str, has_experts: bool) -> tuple[str, str]:
    """Returns the row of the table "for, run".

    Args:
        repo_id: of the model, or what stands for it.
        has_experts: whether experts are packed.
    """
    subject = "vLLM, in whose environment this package is installed"
    if has_experts and VLLM_REFUSES_EXPERTS:
        return subject, "refused: the plugin cannot run packed experts"
    return f"{subject}; {VLLM_TRIED}", f"`vllm serve {repo_id}`"


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
