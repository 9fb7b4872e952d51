#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel; installs each in a clean environment and runs a layer there. Then the sdist
# where there is no compiler, and there again once a compiler has come.
set -euo pipefail
cd "$(dirname "$0")/.."
check="$PWD/tools/check_installed.py"
PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" # the venv's own name, not what it links to
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export QAIG_CACHE="$work/cache" PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

"$PYTHON" -m build --no-isolation --outdir "$work/dist" . >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
wheel=$(ls "$work"/dist/*-py3-none-linux_*.whl) # the name says that the library is inside
sdist=$(ls "$work"/dist/*.tar.gz)

fresh() { # fresh <name>: an environment with torch alone, as a user should begin
  "$PYTHON" -m venv "$work/$1"
  "$work/$1/bin/pip" install -q torch==2.13.0
}
cd "$work" # away from the checkout: what is imported must be what was installed

fresh from-wheel
from-wheel/bin/pip install -q "$wheel"
from-wheel/bin/python "$check" prebuilt
from-wheel/bin/transformers-qaig env
found='import sys, torch; from transformers.quantizers import auto; assert "transformers_qaig" not in sys.modules;'
found="$found print('found without an import:', 'qaig' in auto.AUTO_QUANTIZER_MAPPING)"
from-wheel/bin/python -c "$found" | grep True
QAIG_AUTOLOAD=0 from-wheel/bin/python -c "$found" | grep False
test -e from-wheel/lib/python3*/site-packages/transformers_qaig_optimum.pth # what `optimum-cli qaig` needs
rm -rf from-wheel

fresh from-sdist
from-sdist/bin/pip install -q --no-cache-dir "$sdist"
from-sdist/bin/python "$check" prebuilt

CXX=false from-sdist/bin/pip install -q --no-cache-dir --no-deps --force-reinstall "$sdist"
CXX=false from-sdist/bin/python "$check" none
from-sdist/bin/python "$check" "built at first use"
