"""What every test needs before Transformers is imported."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

from tests import seeds, torchvision_on_cpu

torchvision_on_cpu.make_importable()

from transformers.utils.logging import enable_propagation  # noqa: E402

from transformers_qaig.kernels import compilation, compiler, extension  # noqa: E402  (imports Transformers, which looks for torchvision once)
from transformers_qaig.utils.files import written_with_checksum  # noqa: E402

enable_propagation()  # `caplog` listens at the root logger, and Transformers' own keeps to itself

CSRC = Path(__file__).parents[1] / "csrc"
TINY_VLM = Path(__file__).parents[1] / "examples" / "tiny-vlm"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(seeds.seed())


@pytest.fixture(scope="session")
def tiny_vlm_path() -> Path:
    """Folder of the trained tiny VLM (a LLaVA of 6.8 M parameters, bf16)."""
    return TINY_VLM / "model"


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random LLaVA, processor included."""
    folder = tmp_path_factory.mktemp("llava")
    from tests.families import save

    save("llava", folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def quantized(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A model quantized by default means, and where it was saved, processor included."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.lifecycle import FAST
    from transformers_qaig import QAIGConfig

    folder = tmp_path_factory.mktemp("quantized")
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=QAIGConfig(bits=3, **FAST))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(llava).save_pretrained(folder)
    return model, folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with small sources of its own and an empty cache, in a process that has loaded nothing."""
    folder = tmp_path / "package"
    for name in ("cpu/isa.h", "cpu/isa.cpp", "cpu/huge_pages.h", "cpu/huge_pages.cpp", "ops/build_info.cpp"):
        copy = folder / "csrc" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CSRC / name, copy)
    (folder / "csrc" / "ops" / "cpu.cpp").write_text("static int nothing() { return 0; }\nint qaig_stub = nothing();\n")
    monkeypatch.setattr(compilation, "PACKAGE", folder)
    monkeypatch.setattr(extension, "_found", None)
    monkeypatch.setenv("QAIG_CACHE", str(tmp_path / "cache"))
    for name in (
        "CXX",
        "QAIG_CXXFLAGS",
        "QAIG_CPU_ISA",
        "QAIG_CPU_LEVEL",
        "QAIG_DISABLE_EXTENSION",
        "QAIG_CUDA",
        "QAIG_CUDA_ARCHS",
    ):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def prebuild(package):
    """Puts a library into the package, as `setup.py` does."""

    def put(library: Path) -> Path:
        with written_with_checksum(package / compiler.LIBRARY_NAME) as file:
            shutil.copy(library, file)
        return package / compiler.LIBRARY_NAME

    return put


@pytest.fixture
def compilations(monkeypatch):
    """The files that libraries were compiled to, or tried to be, so far."""
    compiled, real = [], compiler.compile_library

    def count(sources, torch_folder, found, library, nvcc=None):
        compiled.append(library)
        real(sources, torch_folder, found, library, nvcc)

    monkeypatch.setattr(compiler, "compile_library", count)
    return compiled
