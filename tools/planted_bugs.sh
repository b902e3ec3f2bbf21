#!/usr/bin/env bash
# Plants one bug after the other in a copy of the source and shows that the tests catch each.
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

# plant_in TEST NAME FILE OLD NEW: the first place with OLD in it gets NEW instead.
plant_in() {
    local test=$1 name=$2 file=$3 old=$4 new=$5
    if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
    cp "$file" "$copy/$file"
    OLD=$old NEW=$new perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/' "$copy/$file"
    if cmp -s "$file" "$copy/$file"; then
        echo "$name: $file has no such place any more: $old"
        exit 1
    fi
    if (cd "$copy" && cargo test --release --locked --test "$test") >"$copy/log" 2>&1; then
        echo "NOT CAUGHT  $name"
        exit 1
    fi
    if ! grep -q "Running tests/$test[./]" "$copy/log"; then
        echo "$name: did not build"
        tail -n 20 "$copy/log"
        exit 1
    fi
    echo "caught      $name: $(grep -m1 -E '^emulator:|panicked at|is .*the oracle says|SIG' "$copy/log")"
    cp "$file" "$copy/$file"
}

# plant NAME FILE OLD NEW: the same in a kernel.
plant() {
    plant_in kernels "$1" "kernels/$2" "$3" "$4"
}

plant "missing barrier" common.cuh $'scratch[threadIdx.x / 32] = value;\n  __syncthreads();' 'scratch[threadIdx.x / 32] = value;'
plant "missing wait" product.cuh 'copy_wait<T::STAGES - 2>();' ''
plant "divergent barrier" rms_norm.cu 'float squares = 0;' 'float squares = 0; if (threadIdx.x >= p.width) return;'
plant "wrong index" product.cuh 'group + i / 2 * 8' 'group + i % 2 * 8'
plant "one matrix of a pair" product.cuh 'line % 16 < 8 ? first : second' 'first'
plant "numbers added twice" row.cuh 'threadIdx.x + HELD * blockDim.x' 'threadIdx.x + (HELD - 1) * blockDim.x'
plant "wrong mask" attention_tile.cuh 'position < end' 'position + 1 < end'
plant "garbage in unseen values" attention.cu 'value[i] &= keep[i / 2];' ''
plant "a neighbour's values" attention.cu 'if (owns(page, n, i % 2)) sum =' 'sum ='
plant "half a weight" attention.cu 'mma(part, value, low[n]);' ''
plant "page read again" attention_tile.cuh '__match_any_sync(ALL_LANES, ids[turn])' '1u << lane'
plant "page used too early" attention.cu 'copy_wait<Block::STAGES - 2>();' ''
plant "first entry alone" store_kv.cu 'at < end' 'at <= begin'
plant "another entry's target" logprobs.cu 'target = p.targets[entry]' 'target = p.targets[at]'
plant "listed in any order" sample.cu 'scratch.unordered_ids[j] < id' 'j < i'
plant "a carry lost" sample.cu '(sum < part)' '0u'
plant "read before the wait" layer_norm.cu $'  wait_for_previous();\n  start_next();\n  each_held(p.width, [&](unsigned i, unsigned at) { x[i] = row[at]; });' $'  each_held(p.width, [&](unsigned i, unsigned at) { x[i] = row[at]; });\n  wait_for_previous();\n  start_next();'
plant "written before the wait" rms_norm.cu 'wait_for_previous();' $'each_held(p.width, [&](unsigned, unsigned at) { out[at] = to_bf16(0); });\n  wait_for_previous();'
plant "never waits" store_kv.cu $'  wait_for_previous();\n  start_next();' ''
plant "waits in some threads" store_kv.cu $'  wait_for_previous();\n  start_next();' $'  if (threadIdx.x < shape.head_dim) {\n    wait_for_previous();\n    start_next();\n  }'
plant "starts the next too early" rms_norm.cu $'wait_for_previous();\n  start_next();' $'start_next();\n  wait_for_previous();'
plant "a stage given back too early" product_wide.cuh $'wgmma_wait<1>();\n        if (step > first) release(before);' $'if (step > first) release(before);\n        wgmma_wait<1>();'
plant "a stage used too early" product_wide.cuh $'        barrier_wait(ring.full + stage, parity);\n' ''
plant "a stage filled too early" product_wide.cuh $'    barrier_wait(ring.empty + stage, parity);\n' ''
plant "sums read too early" product_wide.cuh $'      wgmma_wait<0>();\n' ''
plant "no fence" product_wide.cuh $'        wgmma_fence();\n' ''
plant "too few bytes expected" product_wide.cuh 'barrier_expect(ring.full + stage, T::STAGE_BYTES)' 'barrier_expect(ring.full + stage, T::LINE_BYTES)'
plant "one parity" product_wide.cuh $'before = stage;\n        if (++stage == T::STAGES) stage = 0, parity ^= 1;' $'before = stage;\n        if (++stage == T::STAGES) stage = 0;'
plant "half a step of positions" product_wide.cuh 'lines + 2 * k, rows + 2 * k' 'lines + k, rows + k'
plant "the first warpgroup's lines" product_wide.cuh ' + warp / 4 * 64 * STEP * 2' ''
plant "a slice on top of another" product_wide.cuh 'step > first || k > 0' 'step > 0 || k > 0'
plant "slices twice as long" product_wide.cuh 'per_slice = div_up(steps, SLICES)' 'per_slice = 2 * div_up(steps, SLICES)'
plant "x copied before the wait" product_wide.cuh $'  wait_for_previous();\n  start_next();\n  for (unsigned step = 0; step < begun; step++) load_rows(step, step);' $'  for (unsigned step = 0; step < begun; step++) load_rows(step, step);\n  wait_for_previous();\n  start_next();'
plant "the other matrix of a pair" matmul_silu_gate.cu 'up_first ? second : first, up = up_first ? first : second' 'up_first ? first : second, up = up_first ? second : first'
plant "a group's last token left out" sample.cu 'if (token < vocab) f(' 'if (token < vocab && i % GROUP < GROUP - 1) f('
plant "groups at the bound left out" sample.cu 'bin_of(logit) < lowest' 'bin_of(logit) <= lowest'
plant "maxima of logits not yet shifted" add_guidance.cu 'store_maxima(maxima, p.vocab, i, shifted[turn]);' ''
plant "a maximum that passes over NaN" maxima.cuh 'a != a || a > b ? a : b' 'fmaxf(a, b)'
plant "index beyond a buffer" embed.cu 'i < p.width' 'i <= p.width'

plant_in engine "models before their weights" src/engine/pair.rs 'queue.after(backend)?;' ''
plant_in engine "reading before it is written" src/engine/mod.rs 'reader.after(&self.backend)' 'Ok(())'
plant_in engine "writing before it is read" src/engine/mod.rs 'self.readers.push(reader.clone());' ''
plant_in engine "logits overwritten" src/engine/chunk.rs $'self.reclaim()?;\n        backend.logits' 'backend.logits'
plant_in engine "tokens overwritten by a draw" src/engine/chunk.rs $'self.reclaim()?;\n        self.backend.sample' 'self.backend.sample'
plant_in engine "tokens overwritten by targets" src/engine/mod.rs $'self.reclaim()?;\n        let (backend, rows)' 'let (backend, rows)'
