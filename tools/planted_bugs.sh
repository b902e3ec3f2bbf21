#!/usr/bin/env bash
# Plants one bug after the other in a copy of the kernels and shows that the tests catch each.
# Takes a build per bug. With names, only those: tools/planted_bugs.sh "wrong mask"
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/planted}"
# Only the emulator's kernels are needed.
export NVCC="" CUDA_HOME=""

wanted=("$@")

# plant NAME FILE OLD NEW: the first line with OLD in it gets NEW instead.
plant() {
    local name=$1 file=$2 old=$3 new=$4
    if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
    cp "kernels/$file" "$copy/kernels/$file"
    OLD=$old NEW=$new perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/' "$copy/kernels/$file"
    if cmp -s "kernels/$file" "$copy/kernels/$file"; then
        echo "$name: kernels/$file has no such place any more: $old"
        exit 1
    fi
    if (cd "$copy" && cargo test --release --locked --test kernels) >"$copy/log" 2>&1; then
        echo "NOT CAUGHT  $name"
        exit 1
    fi
    if ! grep -q "Running tests/kernels" "$copy/log"; then
        echo "$name: did not build"
        tail -n 20 "$copy/log"
        exit 1
    fi
    echo "caught      $name: $(grep -m1 -E '^emulator:|panicked at|is .*the oracle says' "$copy/log")"
    cp "kernels/$file" "$copy/kernels/$file"
}

plant "missing barrier" common.cuh $'scratch[threadIdx.x / 32] = value;\n  __syncthreads();' 'scratch[threadIdx.x / 32] = value;'
plant "missing wait" product.cuh 'copy_wait<STAGES - 2>();' ''
plant "divergent barrier" rms_norm.cu 'float squares = 0;' 'float squares = 0; if (threadIdx.x >= p.width) return;'
plant "wrong index" product.cuh 'group + i / 2 * 8' 'group + i % 2 * 8'
plant "wrong mask" attention_tile.cuh 'position < end' 'position + 1 < end'
plant "garbage in unseen values" attention.cu 'value[i] &= keep[i / 2];' ''
plant "a neighbour's values" attention.cu 'if (owns(page, n, i % 2)) sum =' 'sum ='
plant "half a weight" attention.cu 'mma(part, value, low[n]);' ''
plant "page read again" attention_tile.cuh '__match_any_sync(ALL_LANES, ids[turn])' '1u << lane'
plant "page used too early" attention.cu 'copy_wait<Block::STAGES - 2>();' ''
plant "index beyond a buffer" embed.cu 'i < p.width' 'i <= p.width'
