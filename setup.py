"""Puts the C++ sources into the package and, where a compiler and torch are found, the compiled library beside them.

Without either the wheel is pure, and the library is compiled at first use (transformers_qaig/kernels/extension.py).
So it is in an editable install, whose sources change: a library lying in the checkout would be a stale one.

The library gets CUDA kernels for all architectures of `compiler.CUDA_ARCHITECTURES` (`QAIG_CUDA_ARCHS` names others)
where nvcc is and torch has CUDA, or `QAIG_CUDA=1` asks for them.
"""

import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PACKAGE = Path("transformers_qaig")
OPTIMUM_HOOK = Path("transformers_qaig_optimum.pth")
"""Lets `optimum-cli` find `transformers_qaig_autoload.install_optimum_command`."""
SOURCES = Path("csrc")
compiler = runpy.run_path(str(PACKAGE / "kernels" / "compiler.py"))
files = runpy.run_path(str(PACKAGE / "utils" / "files.py"))


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        installed = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        shutil.copy(OPTIMUM_HOOK, installed)
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
        nvcc = self.find_nvcc(torch)
        for cuda in (nvcc, None) if nvcc is not None else (None,):
            try:
                with files["written_with_checksum"](library) as unfinished:
                    compiler["compile_library"](SOURCES, torch, found, unfinished, cuda)
                return True
            except compiler["CompileError"] as error:
                where, when = ("CUDA kernels", "without them") if cuda is not None else ("kernels", "at first use")
                print(f"The {where} did not compile here, next try {when}: {error}", file=sys.stderr)
        return False

    def find_nvcc(self, torch: Path):
        try:
            nvcc, reason = compiler["choose_nvcc"](torch)
        except compiler["CompileError"] as error:
            nvcc, reason = None, str(error)
        print(f"CUDA kernels: {reason or nvcc.architectures}", file=sys.stderr)
        return nvcc


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
