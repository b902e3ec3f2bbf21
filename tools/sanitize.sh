#!/usr/bin/env bash
# Runs every kernel's tests on the emulator under the address sanitizer: in buffers as in shared
# memory and on the fibers' stacks, what is read or written must be there. For Linux with gcc.
set -euo pipefail
cd "$(dirname "$0")/.."

# Apart from the usual builds, which would not run without the runtime.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/sanitize"
export TRIMTAB_SANITIZE=address
# The runtime must come before all other libraries; leaks are not what is looked for.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
target=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${target}_RUNNER=env LD_PRELOAD=$(cc -print-file-name=libasan.so)"
cargo test --release --locked --test kernels "$@"
