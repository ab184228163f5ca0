#!/usr/bin/env bash
# Memory of training at the sizes of published models, on the CPU: one step of LoRA beside a packed file of the 2B-4T shape, and one step of
# quantization-aware training of all weights of the 0.7B shape. Weights are random.
#
#   scripts/measure-training-memory.sh [DIR]      models are made in DIR (a temporary folder by default), if they are not there
#
# A step has 4 rows of up to 256 tokens. Peaks are the kernel's, of the whole process: reading, the step, its checkpoint and what is exported. Needs
# 16 GB of memory, 15 GB of disk in DIR and GNU time.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release -p bitnet-cli
bitnet=$PWD/target/release/bitnet
dir=${1:-}
work=$(mktemp -d ${dir:+-p "$dir"})
trap 'rm -rf "$work"' EXIT
dir=${dir:-$work}

synth() { # shape, file, more
    [ -e "$dir/$2" ] || cargo run --locked --release --quiet -p xtask -- synth --shape "$1" -o "$dir/$2" "${@:3}" >&2
}
synth 2b-4t 2b4t-i2_s.gguf
synth 0.7b 0.7b-masters --format hf-bf16
for i in {1..200}; do
    words=$(for j in {1..20}; do echo -n "ship $((i * j % 97)) "; done)
    printf '{"prompt": "%s", "completion": " %s"}\n' "sail $i" "$words"
done >"$work/train.jsonl"

step() { # kind, model, settings
    "$bitnet" train --example "$1" >"$work/$1.toml"
    local sets=(output="$work/run" model.init="$dir/$2" data.train="$work/train.jsonl" data.validation_share=0 data.sequence=256
        data.too_long=drop train.steps=1 train.warmup=0 train.batch=4 train.accumulate=1 train.log_every=1
        train.gradient_checkpointing=true "${@:3}")
    env time -f '%M %e' -o "$work/time" "$bitnet" train "$1" -c "$work/$1.toml" --plain "${sets[@]/#/--set=}" >&2
    local peak seconds figures
    read -r peak seconds <"$work/time"
    figures=$(sed -n 's/.*"peak_bytes":\([0-9]*\).*/\1/p' "$work/run/metrics.jsonl" | head -n 1)
    echo "| $1, $2 | $((figures >> 20)) | $((peak >> 10)) | $seconds |"
    rm -r "$work/run"
}
echo "| | MiB behind the step, as the run tells | MiB in all | seconds |"
echo "|---|--:|--:|--:|"
step lora 2b4t-i2_s.gguf
step qat 0.7b-masters quantize.ramp=0
