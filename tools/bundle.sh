#!/usr/bin/env bash
# Packs what is needed to test and measure on an x86-64 Linux machine that has a GPU and its driver but
# neither cargo nor nvcc: the program, the tests, the benches, the golden values, the demo's models.
#
#     tools/bundle.sh [FOLDER]          default: target/bundle
#
# There, `./run.sh tests` runs everything on the GPU, and under compute-sanitizer where it exists;
# `./run.sh bench` measures; results are under results/, as text and as lines of JSON.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-target/bundle}
limit_mib=60
if [ -e "$folder" ] && [ ! -e "$folder/run.sh" ]; then
    echo "bundle.sh: $folder exists and is no bundle: name another folder" >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/tests"
# What is there if this does not get to its end is a bundle all the same.
touch "$folder/run.sh"

# The tests look for the program in the folder that they were built in.
root=$PWD
export CARGO_TARGET_DIR=target
tests=(kernels models engine guide cli server remote)
cargo build --release --locked
if target/release/trimtab devices | grep -q "built without nvcc"; then
    echo "bundle.sh: nvcc is missing: run tools/toolchain.sh first" >&2
    exit 1
fi
cargo test --release --locked --no-run --message-format json "${tests[@]/#/--test=}" >"$folder/messages"
cargo bench --locked --no-run --message-format json --bench device >>"$folder/messages"
for name in "${tests[@]}" device; do
    from=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$folder/messages" | grep -E "/$name-[0-9a-f]+$" | tail -n 1)
    cp "$from" "$folder/bin/$name"
done
rm "$folder/messages"
cp target/release/trimtab "$folder/bin/"
strip "$folder"/bin/*
# All of them have the same kernels: a window that spans two of them makes a fifth of what gzip makes. run.sh unpacks them.
tar -cf - -C "$folder" bin | xz -T0 --lzma2=preset=4,dict=128MiB >"$folder/bin.tar.xz"
rm -r "$folder/bin"
cp -r tests/golden "$folder/tests/"
cp -r models "$folder/"

{
    echo '#!/usr/bin/env bash'
    printf 'root=%q\n' "$root"
    cat <<'RUN'
# Made by tools/bundle.sh of trimtab: tests and benches on this machine's GPU.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD

say() { echo "run.sh: $*" >&2; }

usage() {
    echo "usage: ./run.sh tests    all tests on the GPU, and the kernels' under compute-sanitizer" >&2
    echo "       ./run.sh bench    kernels, models and searches, beside what the GPU allows" >&2
    exit 2
}
[ $# -eq 1 ] || usage
case $1 in tests | bench) ;; *) usage ;; esac

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "this bundle is for Linux on x86-64, not for $(uname -sm)"
    exit 1
fi
if [ ! -d bin ]; then
    # tar wants a program xz for it, which Python does not.
    tar -xf bin.tar.xz 2>/dev/null || python3 -c 'import tarfile; tarfile.open("bin.tar.xz").extractall()'
fi
# One token of a tiny model tells whether program, driver and GPU get on.
if ! said=$(bin/trimtab search --device cuda --method sample --base tests/golden/gpt2 \
    --prompt x --max-new-tokens 1 2>&1 >/dev/null); then
    say "the GPU cannot be used: $said"
    exit 1
fi
mkdir -p results
{
    date -u +%FT%TZ
    bin/trimtab devices
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
    fi
} | tee results/machine.txt

failed=()
# Runs a command, its results also in a file under results/; goes on where it fails.
step() {
    local file=$1
    shift
    echo "== $*"
    "$@" | tee "results/$file.txt" || failed+=("$*")
}

tests() {
    # The tests look for their files, and for the program, in the folder that they were built in.
    if [ ! -e "$root" ] || [ -L "$root/tests" ]; then
        if ! mkdir -p "$root/target"; then
            say "the tests look for their files in $root, which cannot be made: make it yours first"
            exit 1
        fi
        ln -sfn "$here/tests" "$root/tests"
        ln -sfn "$here/models" "$root/models"
        ln -sfn "$here/bin" "$root/target/release"
    fi
    # The first is for the tests, the second for the programs that they start.
    export TRIMTAB_TEST_DEVICE=cuda TRIMTAB_DEVICE=cuda
    step test-kernels bin/kernels
    step test-models bin/models --nocapture
    step test-engine bin/engine
    step test-guide bin/guide
    # Those of `trimtab devices` are for machines without a GPU, and a GPU's driver wants threads of its own.
    step test-cli bin/cli --skip devices:: --skip a_system_without_threads_is_an_error
    step test-server bin/server --test-threads 2
    step test-remote bin/remote --test-threads 2

    local sanitizer
    sanitizer=$(command -v compute-sanitizer || command -v /usr/local/cuda/bin/compute-sanitizer || true)
    if [ -z "$sanitizer" ]; then
        say "compute-sanitizer was not found: memory and races were not checked"
        return
    fi
    for tool in memcheck racecheck; do
        sanitized $tool kernels
        sanitized $tool engine queues siblings ends
        sanitized $tool models kernels
    done
}

# Each test of a program, or those that some words choose, by itself under one of the sanitizer's tools, which
# makes some of them a hundred times as slow: those that take longer than SANITIZER_SECONDS are named.
sanitized() {
    local tool=$1 program=$2 limit=${SANITIZER_SECONDS:-20} status list=results/$1-$2.txt late=()
    shift 2
    echo "== $tool $program $*"
    : >"$list"
    for name in $("bin/$program" --list --format terse "$@" | sed -n 's/: test$//p'); do
        status=0
        TRIMTAB_TEST_SANITIZED=1 timeout --kill-after 5 "$limit" "$sanitizer" --tool "$tool" --error-exitcode 1 \
            "bin/$program" --exact "$name" >>"$list" 2>&1 || status=$?
        case $status in
            0) echo "$tool $name: ok" ;;
            124 | 137) late+=("$name") ;;
            *)
                echo "$tool $name: FAILED, see $list"
                failed+=("$tool $name")
                ;;
        esac
    done
    [ ${#late[@]} -eq 0 ] || echo "$tool: not done in $limit s each: ${late[*]}"
}

bench() {
    step kernels bin/device --device cuda --json results/kernels.json
    local shape pair base guide l
    for shape in gpt2 gpt2-xl llama-1b llama-8b; do
        step "decode-$shape" bin/trimtab bench decode --device cuda --shape $shape --batch 1,16,32,64 \
            --prompt-len 256 --max-new-tokens 128 --json "results/decode-$shape.json"
        step "score-$shape" bin/trimtab bench score --device cuda --shape $shape --batch 1,16 \
            --prompt-len 512 --json "results/score-$shape.json"
    done
    for pair in gpt2:gpt2 gpt2-xl:gpt2 llama-1b:llama-1b llama-8b:llama-1b; do
        base=${pair%:*} guide=${pair#*:}
        for l in 10 30; do
            step "search-$base-$l" bin/trimtab bench search --device cuda --shape $base \
                --guide-shape $guide -w 4 -k 4 -l $l --prompt-len 128 --max-new-tokens 120 \
                --concurrency 1,8 --json "results/search-$base-$l.json"
        done
        step "cost-$base" bin/trimtab bench search --device cuda --shape $base --guide-shape $guide \
            -w 4 -k 4 -l 10 --prompt-len 128 --plot "results/cost-$base.svg"
    done
}

$1
if [ ${#failed[@]} -gt 0 ]; then
    say "${#failed[@]} failed:"
    printf '  %s\n' "${failed[@]}" >&2
    exit 1
fi
say "all is well; what was printed is under $here/results"
RUN
} >"$folder/run.sh"
chmod +x "$folder/run.sh"

mib=$(du -sm "$folder" | cut -f1)
echo "$folder: $mib MiB"
if [ "$mib" -ge $limit_mib ]; then
    echo "bundle.sh: that is not under $limit_mib MiB" >&2
    exit 1
fi
