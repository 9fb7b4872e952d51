"""Puts the C++ sources into the package and, where a compiler and torch are found, the compiled library beside them.

Without either the wheel is pure, and the library is compiled at first use (transformers_qaig/extension.py). So it is
in an editable install, whose sources change: a library lying in the checkout would be a stale one.
"""

import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PACKAGE = Path("transformers_qaig")
SOURCES = Path("csrc")
compiler = runpy.run_path(str(PACKAGE / "compiler.py"))


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / PACKAGE
        shutil.rmtree(package / SOURCES, ignore_errors=True)
        shutil.copytree(SOURCES, package / SOURCES)
        self.distribution.compiled = self.compile_kernels(package / compiler["LIBRARY_NAME"])

    def compile_kernels(self, library: Path) -> bool:
        library.unlink(missing_ok=True)
        found, torch = compiler["find_compiler"](), compiler["find_torch"]()
        if found is None or torch is None:
            missing = "C++ compiler" if found is None else "torch"
            print(f"No {missing} is visible to this build: the kernels will be compiled at first use", file=sys.stderr)
            return False
        try:
            compiler["compile_library"](SOURCES, torch, found, library)
        except compiler["CompileError"] as error:
            print(f"The kernels did not compile here, and will be tried again at first use: {error}", file=sys.stderr)
            return False
        return True


class Wheel(bdist_wheel):
    def run(self) -> None:
        self.run_command("build")  # whether it compiled decides the tag
        self.root_is_pure = not self.distribution.compiled
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3: the library is loaded by ctypes and links nothing of Python's."""
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    compiled = False

    def has_ext_modules(self) -> bool:
        return self.compiled


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel},
)
