#!/usr/bin/env bash
# Fuzzes every parser, a minute each: tools/fuzz.sh [SECONDS [TARGET …]]. Needs cargo-fuzz and a nightly
# toolchain. What is found comes to fuzz/artifacts; add it to fuzz/corpus once it is mended.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
if ! command -v cargo-fuzz >/dev/null || ! rustc +nightly --version >/dev/null 2>&1; then
    echo "needs cargo install cargo-fuzz, and rustup toolchain install nightly" >&2
    exit 1
fi
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(cargo +nightly fuzz list)
fi
for target in "${targets[@]}"; do
    printf '\n== %s\n' "$target"
    # What it learns stays beside the corpus that is committed.
    mkdir -p "fuzz/learned/$target"
    cargo +nightly fuzz run "$target" "fuzz/learned/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048
done
