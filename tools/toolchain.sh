#!/usr/bin/env bash
# Puts nvcc, nvdisasm and libclang into .toolchain/, with no root and no system CUDA: about 350 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -m venv .toolchain/venv
.toolchain/venv/bin/pip install --quiet --disable-pip-version-check \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvdisasm==13.5.37 libclang==18.1.1

packages=$(.toolchain/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -sf "$packages/nvidia/cu13/bin/nvcc" .toolchain/nvcc
ln -sf "$packages/nvidia/cu13/bin/nvdisasm" .toolchain/nvdisasm
ln -sf "$packages/clang/native/libclang.so" .toolchain/libclang.so
# The next build looks for nvcc again.
touch build.rs
.toolchain/nvcc --version | tail -n 1
