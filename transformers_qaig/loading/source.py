"""Finds where a model's weights came from, and the processor's files beside them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from transformers import AutoProcessor

PROCESSOR_FILES = (
    "*processor_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "*.model",  # SentencePiece
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""The files that a processor or tokenizer is loaded from, as patterns."""


@dataclass(frozen=True)
class Source:
    """A folder, or one commit of a repository on the Hub.

    Attributes:
        name: path of the folder, or the repository's id.
        revision: commit of the repository; None: the newest.
        cache_dir: the Hub's cache that the weights lie in; None: the usual one.
        subfolder: of the folder or repository, in which the weights lie.
        local_files_only: nothing may be downloaded.
    """

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    subfolder: str = ""
    local_files_only: bool = False

    @classmethod
    def of(
        cls,
        name_or_path: str | os.PathLike[str],
        checkpoint_files: Sequence[str] | None = None,
        local_files_only: bool = False,
    ) -> Source:
        """Returns the source of what `from_pretrained(name_or_path)` loads.

        Args:
            name_or_path: a folder or a repository's id.
            checkpoint_files: paths of the weight files; they tell revision, cache and subfolder.
            local_files_only: as it was given.
        """
        name = os.fspath(name_or_path)
        if not checkpoint_files:
            return cls(name, local_files_only=local_files_only)
        folder = Path(str(checkpoint_files[0])).parent
        for place in (folder, *folder.parents):  # <cache>/models--<owner>--<name>/snapshots/<commit>/<subfolder>
            repository = place.parent.parent
            if place.parent.name == "snapshots" and repository.name.startswith("models--"):
                repo_id = "/".join(repository.name.split("--")[1:])
                return cls(repo_id, place.name, str(repository.parent), _below(folder, place), local_files_only)
        if Path(name) in folder.parents:
            return cls(name, subfolder=_below(folder, Path(name)), local_files_only=local_files_only)
        return cls(str(folder), local_files_only=local_files_only)

    def reach(self, name_or_path: str | os.PathLike[str]) -> Source:
        """Returns another folder or repository, with the same cache and the same permission to download."""
        return Source(os.fspath(name_or_path), cache_dir=self.cache_dir, local_files_only=self.local_files_only)

    def described(self) -> str:
        """Returns the name, with what it is for a reader of an error: a folder, or a name on the Hub."""
        return f"the folder {self.name!r}" if Path(self.name).is_dir() else f"{self.name!r}, which is no folder here"

    def load_processor(self, *, token: str | bool | None = None, trust_remote_code: bool = False) -> Any:
        """Loads the processor beside the weights, or else that of the whole repository.

        Raises:
            Exception: whatever `AutoProcessor.from_pretrained` raises.
        """
        for subfolder in dict.fromkeys((self.subfolder, "")):
            try:
                return AutoProcessor.from_pretrained(
                    self.name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    subfolder=subfolder,
                    local_files_only=self.local_files_only,
                    token=token,
                    trust_remote_code=trust_remote_code,
                )
            except Exception:
                if not subfolder:
                    raise
        raise AssertionError("unreachable")

    def file(self, name: str, *, token: str | bool | None = None) -> Path | None:
        """Returns a file beside the weights, or else one of the whole repository; None if neither can be had.

        Args:
            name: of the file.
            token: for a gated repository.
        """
        for subfolder in dict.fromkeys((self.subfolder, "")):
            path = Path(self.name, subfolder, name)
            if not Path(self.name).is_dir():
                with contextlib.suppress(Exception):
                    path = Path(
                        hf_hub_download(
                            self.name,
                            name,
                            subfolder=subfolder or None,
                            revision=self.revision,
                            cache_dir=self.cache_dir,
                            local_files_only=self.local_files_only,
                            token=token,
                        )
                    )
            if path.is_file():
                return path
        return None

    def fetch(self, token: str | bool | None) -> None:
        """Downloads the processor's files now, for saving: the token is not kept. If that fails, saving says so."""
        with contextlib.suppress(Exception):
            self.processor_files(token=token)

    def processor_files(self, *, token: str | bool | None = None) -> dict[str, Path]:
        """Returns the processor's files beside the weights, or else those of the whole repository, by name.

        Files of a repository on the Hub are downloaded into the cache that its weights lie in.

        Args:
            token: for a gated repository.

        Raises:
            OSError: the Hub cannot be reached and the cache holds nothing of this commit.
        """
        folders = list(dict.fromkeys((self.subfolder, "")))
        root = Path(self.name)
        if not root.is_dir():
            patterns = [str(PurePosixPath(folder, name)) for folder in folders for name in (*PROCESSOR_FILES, "*.py")]
            root = Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    allow_patterns=patterns,
                    local_files_only=self.local_files_only,
                    token=token,
                )
            )
        found = (dict(_matching(root / folder)) for folder in folders)
        return next((files for files in found if files), {})


def _below(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else relative


def _matching(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the processor's files, and the code that they name."""
    files = sorted(file for pattern in PROCESSOR_FILES for file in folder.glob(pattern) if file.is_file())
    if any(b'"auto_map"' in file.read_bytes() for file in files if file.name.endswith("config.json")):
        files += sorted(folder.glob("*.py"))
    for file in files:
        yield file.relative_to(folder).as_posix(), file
