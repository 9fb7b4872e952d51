#!/usr/bin/env bash
# Makes an environment with vLLM's CPU engine and this package: `PYTHON=python3 tools/make_vllm.sh .venv-vllm`.
# Every package is pinned and installed without its requirements: the list is complete, and nothing is resolved.
# torch comes first, or a later step would choose a build of its own.
set -euo pipefail
venv=$1
here="$(cd "$(dirname "$0")/.." && pwd)"
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip --no-deps -r "$here/tools/vllm-requirements.txt"
pip --no-deps --no-build-isolation -e "$here"
# torchvision has no CPU build. The CUDA wheel is importable once two of its operators have schemas, in every process.
"$venv/bin/python" - <<'PYTHON'
import sysconfig
from pathlib import Path

file = Path(sysconfig.get_path("purelib")) / "torchvision" / "__init__.py"
schemas = """import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
if not file.read_text().startswith(schemas):
    file.write_text(schemas + file.read_text())
PYTHON
"$venv/bin/python" -c "import torchvision, vllm; print('vLLM', vllm.__version__)"
