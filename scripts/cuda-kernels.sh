#!/usr/bin/env bash
# Compiles the CUDA kernels into crates/bitnet-cuda/generated/, which is checked in, so that building and running bitnet needs no
# CUDA toolkit. Needs Python, and the network the first time: the compiler comes from PyPI, at the versions below.
#
#   scripts/cuda-kernels.sh
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${CUDA_VENV:-target/cuda-compiler}
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
    touch "$venv/ready"
fi
nvcc=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
crate=crates/bitnet-cuda
out=$crate/generated
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Machine code for the common architectures, and PTX, which a driver compiles for the others. What only training needs is a file of its own.
for module in kernels training; do
    "$nvcc" -std=c++20 -O3 -fmad=false -fatbin -compress-mode=size \
        -gencode arch=compute_80,code=[sm_80,compute_80] \
        -gencode arch=compute_89,code=sm_89 \
        -gencode arch=compute_90,code=sm_90 \
        -gencode arch=compute_100,code=sm_100 \
        "$crate/kernels/$module.cu" -o "$work/$module.fatbin"
done
# What a test compares with the sources: it fails when they change and this script was not run.
(cd "$crate/kernels" && cat $(ls *.cu *.cuh | LC_ALL=C sort) | sha256sum | cut -d' ' -f1) >"$work/sources.sha256"
mkdir -p "$out"
mv "$work"/{kernels,training}.fatbin "$work/sources.sha256" "$out"
ls -l "$out"
