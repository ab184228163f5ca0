#!/usr/bin/env bash
# Speed beside other engines, on the same shape, in turn (A B A B), as ratios.
#
#   scripts/bench-rivals.sh [OPTIONS]                              llama.cpp through llama-cpp-python: TQ2_0, Q4_0 and BF16
#   scripts/bench-rivals.sh [OPTIONS] --llama-bench PROGRAM MODEL  any llama-bench, and the model that it is to run
#
# OPTIONS: --shape NAME [2b-4t] (of `cargo xtask synth`); -p N [512], -n N [64], -t LIST [1,2], --rounds N [3]; --formats LIST
# [tq2_0,q4_0,bf16]; --ours MODEL to run that instead of an I2_S file of the shape.
# The package (built from its source distribution, for this processor) and the models, some 8 GB, are kept in $RIVALS,
# ~/.cache/bitnet-rivals by default. Run it on a machine that does nothing else. Needs python3 with venv, cmake and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
rivals=${RIVALS:-$HOME/.cache/bitnet-rivals}
shape=2b-4t formats=tq2_0,q4_0,bf16 ours="" program="" model="" compare=()
while (($#)); do
    case $1 in
        --shape) shape=$2; shift 2 ;;
        --formats) formats=$2; shift 2 ;;
        --ours) ours=$2; shift 2 ;;
        -p | -n | -t | --rounds) compare+=("$1" "$2"); shift 2 ;;
        --llama-bench) program=$2 model=$3; shift 3 ;;
        *) echo "unknown option $1; see the beginning of $0" >&2; exit 2 ;;
    esac
done
mkdir -p "$rivals"
cargo build --locked --release -p bitnet-cli -p xtask

synth() { # format, further options: the file's path
    local file=$rivals/$shape-$1.gguf
    if [ ! -e "$file" ]; then
        # llama.cpp has one name for all BitNet models, and needs no vocabulary to be measured.
        target/release/xtask synth --shape "$shape" --format "gguf-$1" --no-tokenizer "${@:2}" -o "$file.part" >&2
        mv "$file.part" "$file"
    fi
    echo "$file"
}
ours=${ours:-$(synth i2_s)}
us="target/release/bitnet bench $ours -q --roofline"
if [ -n "$program" ]; then
    python3 scripts/compare_bench.py "${compare[@]}" --ours bitnet "$us" --theirs "$(basename "$model")" "$program -m $model"
    exit
fi

if [ ! -x "$rivals/venv/bin/pip" ]; then
    python3 -m venv "$rivals/venv"
fi
python=$rivals/venv/bin/python
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    # Its AMX products read memory that is not theirs (0.3.36, gcc 12, Q4_0); they are left out.
    noamx="-mno-amx-tile -mno-amx-int8"
    [[ $(uname -m) == x86_64 ]] || noamx=""
    CFLAGS=$noamx CXXFLAGS=$noamx CMAKE_ARGS=-DGGML_NATIVE=ON \
        "$rivals/venv/bin/pip" install --quiet --no-binary llama-cpp-python llama-cpp-python
fi
echo "llama-cpp-python $("$python" -c 'import llama_cpp; print(llama_cpp.__version__)'), $shape"
for format in ${formats//,/ }; do
    case $format in
        bf16) model=$(synth bf16 --embedding BF16 --gguf-arch bitnet) ;;
        *) model=$(synth "$format" --gguf-arch bitnet) ;;
    esac
    python3 scripts/compare_bench.py "${compare[@]}" --ours "bitnet $(basename "$ours")" "$us" \
        --theirs "llama.cpp $format" "$python scripts/llama_cpp_bench.py -m $model"
    echo
done
