#!/usr/bin/env bash
# Packs what is needed to test and measure on an x86-64 Linux machine that has a GPU and its driver but
# neither cargo nor nvcc: the program, the tests, the benches, the golden values, the demo's models.
#
#     tools/bundle.sh [FOLDER]          default: target/bundle
#
# There, `./run.sh tests` runs everything on the GPU, and under compute-sanitizer where it exists;
# `./run.sh bench` measures, results as JSON under results/.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-target/bundle}
if [ ! -x .toolchain/nvcc ] && ! command -v nvcc >/dev/null; then
    echo "nvcc is missing: run tools/toolchain.sh first" >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder/bin"

# The tests read golden values and models below the folder that they were built in.
root=$PWD
cargo build --release --locked
list() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }
names=(kernels models cli device)
cargo test --release --locked --no-run --message-format json \
    --test kernels --test models --test cli 2>/dev/null | list >"$folder/executables"
cargo bench --locked --no-run --message-format json --bench device 2>/dev/null | list >>"$folder/executables"
cp target/release/trimtab "$folder/bin/"
for name in "${names[@]}"; do
    from=$(grep -E "/$name-[0-9a-f]+$" "$folder/executables" | tail -n 1)
    cp "$from" "$folder/bin/$name"
done
rm "$folder/executables"
strip "$folder"/bin/*
mkdir -p "$folder/tests"
cp -r tests/golden "$folder/tests/"
cp -r models "$folder/"

cat >"$folder/run.sh" <<RUN
#!/usr/bin/env bash
# Made by tools/bundle.sh of trimtab.
set -euo pipefail
cd "\$(dirname "\$0")"
here=\$PWD

# The executables look for their files, and for the program, where they were built.
if [ ! -e "$root" ]; then
    mkdir -p "$root/target"
    ln -s "\$here/tests" "$root/tests"
    ln -s "\$here/models" "$root/models"
    ln -s "\$here/bin" "$root/target/release"
fi
mkdir -p results
export TRIMTAB_TEST_DEVICE=cuda

case "\${1:-}" in
tests)
    bin/trimtab devices
    bin/kernels
    bin/models --nocapture
    bin/cli --skip devices
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            compute-sanitizer --tool \$tool --error-exitcode 1 bin/kernels --test-threads 1
        done
    else
        echo "compute-sanitizer was not found: memory and races were not checked"
    fi
    ;;
bench)
    bin/device --device cuda
    bin/device --device cuda --json >results/kernels.json
    ;;
*)
    echo "usage: ./run.sh tests | bench" >&2
    exit 2
    ;;
esac
RUN
chmod +x "$folder/run.sh"
du -sh "$folder"
