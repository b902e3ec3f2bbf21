#!/usr/bin/env bash
# Measures trimtab side by side with what people would use instead. See README.md in this folder.
#
#     tools/compare/compare.sh [--quick] [--only NAME,…] [--rounds N] …      --help says the rest
#
# What it needs besides a C++ compiler it puts into .venv-compare: 6 GB, once.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.venv-compare
requirements=tools/compare/requirements.txt
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    # llama.cpp comes as source and is built for this processor.
    CMAKE_ARGS="-DGGML_NATIVE=ON -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF" \
        "$venv/bin/python" -m pip install --no-binary llama-cpp-python --requirement "$requirements" ||
        while read -r requirement; do # What cannot be had becomes a row that says so.
            "$venv/bin/python" -m pip install --no-binary llama-cpp-python "$requirement" ||
                echo "compare: $requirement could not be installed" >&2
        done <"$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
cargo build --release --locked
exec "$venv/bin/python" tools/compare/compare.py "$@"
