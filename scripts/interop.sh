#!/usr/bin/env bash
# What bitnet writes, read and run by other people's software: transformers, gguf, llama-cpp-python, ONNX Runtime, torch and mlx.
# The packages, about 6 GB, are kept in $INTEROP, ~/.cache/bitnet-interop by default; llama-cpp-python is built from source.
# Needs python3 with venv, cmake and a C++ compiler. Options go to interop.py: names of checks, to run only those.
set -euo pipefail
cd "$(dirname "$0")/.."
interop=${INTEROP:-$HOME/.cache/bitnet-interop}
python=$interop/venv/bin/python
cargo build --locked --release -p bitnet-cli
if [ ! -x "$python" ]; then
    mkdir -p "$interop"
    python3 -m venv "$interop/venv"
fi
"$python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6 gguf==0.19.0 onnx==1.23.2 onnxruntime==1.32.0
"$python" -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36 || echo "llama-cpp-python does not install here"
"$python" -m pip install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 || echo "mlx does not install here"
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
exec "$python" scripts/interop.py "$target/release/bitnet" tests/fixtures "$@"
