#!/usr/bin/env bash
# Holds all dependencies to deny.toml: licences, duplicates, sources, and known faults (advisories) where
# their database can be reached. Fetches cargo-deny where there is none, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.20.2
LIMIT=900
export PATH="$PWD/.toolchain/deny/bin:$PATH"

if ! command -v cargo-deny >/dev/null; then
    if ! timeout "$LIMIT" cargo install cargo-deny --version "$VERSION" --locked --quiet \
        --root .toolchain/deny --target-dir .toolchain/deny-build; then
        echo "NOT CHECKED: cargo-deny was not there within $LIMIT s" >&2
        exit 0
    fi
    rm -rf .toolchain/deny-build
fi

cargo deny check --hide-inclusion-graph licenses bans sources
if cargo deny fetch db; then
    cargo deny --offline check --hide-inclusion-graph advisories
else
    echo "NOT CHECKED: advisories, whose database was not reached" >&2
fi
