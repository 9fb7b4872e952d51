"""Makes Transformers load models of the method `qaig` where nobody imports this package.

`import torch` calls [`install`], through the entry point group `torch.backends`. It changes nothing but how one module
of Transformers is imported; that module's tables then import this package when somebody asks them for `qaig`.
`QAIG_AUTOLOAD=0` switches it off. [`install_optimum_command`] does the like for optimum's command line.

This module lies beside the package and imports nothing slow, since every `import torch` imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGE, _METHOD = "transformers_qaig", "qaig"
_TABLES = "transformers.quantizers.auto"
_OPTIMUM = "optimum.commands.optimum_cli"
_NAMES = ("AUTO_QUANTIZATION_CONFIG_MAPPING", "AUTO_QUANTIZER_MAPPING")


def install() -> None:
    """Prepares Transformers' tables of quantization methods, now or once they are imported."""
    if os.environ.get("QAIG_AUTOLOAD", "1") != "0":
        when_imported(_TABLES, _make_tables_import)


def install_optimum_command() -> None:
    """Prepares optimum's command line: it has `optimum-cli qaig` once it is imported.

    optimum imports no torch before it reads its arguments, so `transformers_qaig_optimum.pth` calls this, and only
    where the program is optimum's. A folder `optimum/commands/register` would need no such call. But it would be a
    part of the namespace package `optimum`, which Transformers then takes for installed.
    """
    if os.environ.get("QAIG_AUTOLOAD", "1") != "0":
        when_imported(_OPTIMUM, _add_optimum_command)


def lmms_eval_models() -> list[Any]:
    """Imports the package for lmms-eval, which calls this as an entry point and gets no models of its own."""
    __import__(_PACKAGE)
    return []


class _ImportingTable(dict[str, Any]):
    """A table of quantization methods that imports this package when it is asked for the package's method."""

    def __contains__(self, key: object) -> bool:
        if key == _METHOD and _PACKAGE not in sys.modules:
            __import__(_PACKAGE)  # which registers the method here
        return isinstance(key, str) and super().__contains__(key)  # a damaged config may name a list


def _make_tables_import() -> None:
    module = sys.modules[_TABLES]
    for name in _NAMES:
        if type(vars(module).get(name)) is dict:  # another version of Transformers may hold something else
            setattr(module, name, _ImportingTable(vars(module)[name]))


def _add_optimum_command() -> None:
    from transformers_qaig_cli.optimum_command import QAIGCommand

    sys.modules[_OPTIMUM].optimum_cli_subcommand()(QAIGCommand)  # optimum's own decorator for other packages


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Calls `action` right after the module `name` is imported, or now if it is imported already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher(MetaPathFinder):
    """Adds the action to how one module is loaded, once; it finds no module itself.

    It stays where it is: many look for a module with `importlib.util.find_spec`, and import it later or never. And a
    list that shrinks while another thread walks along it hides an entry from that thread.
    """

    def __init__(self, name: str, action: Callable[[], None]):
        self.name, self.action, self.is_done = name, action, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_done:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                if not self.is_done:
                    self.is_done = True
                    self.action()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
