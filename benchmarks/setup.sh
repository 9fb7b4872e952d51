#!/bin/sh
# Makes the environment of the CPU benchmarks: sh benchmarks/setup.sh [folder, .venv-bench by default]
# ggml comes from the source package of llama-cpp-python and is built for this machine; that takes a few minutes.
set -eu
LLAMA_CPP_PYTHON=0.3.36

here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-.venv-bench}
python3 -m venv "$venv"
venv=$(cd "$venv" && pwd)
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install -q torch==2.13.0  # first and alone: a later step must find it installed, not choose a build of its own
$pip install -q -r "$here/requirements.txt" "$here/.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
$pip download -q --no-deps --no-binary llama-cpp-python -d "$build" "llama-cpp-python==$LLAMA_CPP_PYTHON"
tar -xzf "$build"/llama_cpp_python-*.tar.gz -C "$build"
ggml=$(echo "$build"/llama_cpp_python-*/vendor/llama.cpp/ggml)
PATH="$venv/bin:$PATH"
cmake -S "$here/peers" -B "$build/build" -G Ninja "-DGGML_SOURCE=$ggml" > "$build/log" || { cat "$build/log"; exit 1; }
cmake --build "$build/build" >> "$build/log" || { cat "$build/log"; exit 1; }
mkdir -p "$venv/ggml"
cp "$build/build/libggml_driver.so" "$venv/ggml/"
echo "of llama-cpp-python $LLAMA_CPP_PYTHON" > "$venv/ggml/version"
