#!/bin/sh
# Makes the environments of the accuracy benchmark's peers: sh benchmarks/accuracy_peers/setup.sh [folder] [name...]
# One for each file in requirements/, in .venv-peers by default; those that are there already are left alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-.venv-peers}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- $(cd "$here/requirements" && ls | sed 's/\.txt$//')
mkdir -p "$folder"
for name in "$@"; do
  [ -e "$folder/$name/.done" ] && continue
  python3 -m venv "$folder/$name"
  pip="$folder/$name/bin/python -m pip --disable-pip-version-check"
  $pip install -q torch==2.13.0  # first and alone: a later step must find it installed, not choose a build of its own
  $pip install -q -r "$here/requirements/$name.txt"
  touch "$folder/$name/.done"
done
