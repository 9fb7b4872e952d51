"""The CPU kernels as a kernel of the Hub: what it lists, its schemas, and its library under another namespace."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transformers_qaig.kernels import compiler

ROOT = Path(__file__).parents[2]
BINDING = ROOT / "torch-ext" / "torch_binding.cpp"
ELSEWHERE = "qaig_elsewhere"

COMPARE = f"""
import sys
import torch
from transformers_qaig import QAIGLinear

torch.ops.load_library(sys.argv[1])
for bits in (2, 3, 4, 8):
    codes = torch.randint(0, 2**bits, (40, 128), dtype=torch.uint8)
    layer = QAIGLinear.from_codes(codes, torch.rand(40, 2), None, bits=bits, group_size=64)
    x = torch.randn(3, 128)
    tensors = layer.weight_packed, layer.weight_scale, None
    numbers = 0, 0, 40, bits, 64, 16, 0
    there = torch.ops.{ELSEWHERE}.linear(x, *tensors, None, *numbers)
    assert torch.equal(there, torch.ops.qaig.linear(x, *tensors, None, *numbers)), bits
    torch.testing.assert_close(there, x @ layer.dequantize().T, rtol=1e-3, atol=1e-2)
names = {{name for name in torch._C._dispatch_get_all_op_names() if name.startswith("{ELSEWHERE}::")}}
assert {{name.split("::")[1] for name in names}} == set(sys.argv[2:]), names
"""


def schemas() -> dict[str, str]:
    """Name → schema, of the C++ file."""
    defined = re.findall(r"m\.def\(((?:\s*\".*?\")+)\);", BINDING.read_text())
    joined = ["".join(re.findall(r"\"(.*?)\"", text)) for text in defined]
    return {schema.partition("(")[0]: schema for schema in joined}


def test_it_lists_every_source_of_the_cpu() -> None:
    tomllib = pytest.importorskip("tomllib")
    build = tomllib.loads((ROOT / "build.toml").read_text())
    kernel = build["kernel"]["qaig_cpu"]
    found = [path for folder in ("cpu", "ops") for path in (ROOT / "csrc" / folder).rglob("*.*")]
    sources = {path.relative_to(ROOT).as_posix() for path in found if path.suffix in (".cpp", ".h")}
    assert set(kernel["src"]) == {path for path in sources if "/cuda/" not in path}
    assert build["torch"]["src"] == [BINDING.relative_to(ROOT).as_posix()]
    assert (ROOT / "torch-ext" / build["general"]["name"] / "__init__.py").is_file()


def test_its_schemas_are_those_of_the_package_and_have_a_function_each() -> None:
    registered = set(
        re.findall(r"m\.impl\(\"(\w+)\"", "".join(p.read_text() for p in (ROOT / "csrc/ops").glob("*.cpp")))
    )
    assert set(schemas()) == registered
    for name, schema in schemas().items():
        own = getattr(torch.ops.qaig, name).default._schema
        assert str(torch._C.parse_schema(f"qaig::{schema}")) == str(own)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(compiler.find_compiler() is None, reason="there is no C++ compiler")
def test_its_library_loads_beside_the_package_under_another_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=shutil.ignore_patterns("cuda"))
    shutil.copy(BINDING, sources)
    monkeypatch.setenv("QAIG_CXXFLAGS", f"-O1 -DTORCH_EXTENSION_NAME={ELSEWHERE} -Dqaig=TORCH_EXTENSION_NAME")
    library = tmp_path / "library.so"
    compiler.compile_library(sources, Path(torch.__file__).parent, compiler.find_compiler(), library)
    monkeypatch.delenv("QAIG_CXXFLAGS")  # the package's own kernels keep their namespace
    subprocess.run([sys.executable, "-c", COMPARE, str(library), *schemas()], check=True, cwd=ROOT, timeout=600)
