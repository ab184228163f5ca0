#!/usr/bin/env bash
# A run's event files, read by the real TensorBoard: every scalar is that of metrics.jsonl, before and after the run was killed and
# went on, and samples are texts. Needs python3 with venv, and a package index for tensorboard. BITNET is the program to
# check; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BITNET:-}" ]; then
    cargo build --quiet --locked --release -p bitnet-cli
    BITNET=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/bitnet
fi
BITNET=$(realpath "$BITNET")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorboard${TENSORBOARD:+==$TENSORBOARD}"

fixtures=$PWD/tests/fixtures
for i in $(seq 40); do echo "{\"text\": \"ships at night $i sail home from the sea, $((i * 7 % 13)) of them\"}"; done >"$folder/train.jsonl"
cd "$folder"
bitnet() { "$BITNET" "$@"; }
bitnet train --example pretrain >pretrain.toml
begin() {
    bitnet train pretrain -c pretrain.toml -q --set output=run --set "model.tokenizer=$fixtures/bitnet-online" --set data.train=train.jsonl \
        --set data.sequence=48 --set data.validation_share=0.2 --set model.hidden_size=64 --set model.intermediate_size=128 --set model.num_hidden_layers=2 \
        --set model.num_attention_heads=2 --set train.batch=2 --set train.log_every=2 --set train.checkpoint_every=6 \
        --set train.validate_every=10 --set 'samples.prompts=["ships at", "the sea"]' --set samples.tokens=6 "$@"
}
begin --set train.steps=16
# As if it had been killed behind step 16, with its last checkpoint at step 12: what comes behind is taken again.
rm -rf run/checkpoints/step-00000016
printf 'half a record' >>"$(ls run/tensorboard/*)"
begin --resume run --set train.steps=24

cat >check.py <<'PY'
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, TENSORS, SCALARS
import tensorboard
from tensorboard.util import tensor_util

events = EventAccumulator("run/tensorboard", size_guidance={TENSORS: 0, SCALARS: 0})
events.Reload()
lines = [json.loads(line) for line in open("run/metrics.jsonl")]
tags = {"loss": "train/loss", "rate": "train/learning_rate", "grad_norm": "train/gradient_norm", "tokens_per_second": "speed/tokens_per_second",
        "resident_bytes": "memory/resident_bytes", "validation_loss": "validation/loss", "perplexity": "validation/perplexity"}
compared = 0
def same(want, tag):
    global compared
    got = [(e.step, e.value) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else \
        [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
    assert len(want) > 1 and len(got) == len(want), (tag, len(got), len(want))
    for (step, value), (at, number) in zip(want, got):
        assert step == at and abs(value - number) <= 1e-6 * abs(value), (tag, step, value, at, number)
        compared += 1
for key, tag in tags.items():
    same([(line["step"], line[key]) for line in lines if key in line], tag)
for key, tag in {"zeros": "zeros", "flips": "flips", "snr_db": "snr_db", "scale": "scale", "clipped": "clipped", "grad_norm": "gradient_norm"}.items():
    for layer in next(line for line in lines if "health" in line)["health"]:
        name = layer["tensor"].removeprefix("model.").removesuffix(".weight")
        same([(line["step"], next(l for l in line["health"] if l["tensor"] == layer["tensor"])[key]) for line in lines if "health" in line], f"health_{tag}/{name}")
texts = [line for line in lines if "samples" in line]
assert [line["step"] for line in texts] == [10, 20, 24], texts
for i in (1, 2):
    tag = f"samples/{i}"
    assert events.summary_metadata[tag].plugin_data.plugin_name == "text"
    for event, line in zip(events.Tensors(tag), texts, strict=True):
        text = tensor_util.make_ndarray(event.tensor_proto)[0].decode()
        sample = line["samples"][i - 1]
        assert [l[4:] for l in text.splitlines()] == (sample["prompt"] + sample["text"]).splitlines(), (text, sample)
print(f"tensorboard {tensorboard.__version__}: {compared} scalars and {2 * len(texts)} texts are those of metrics.jsonl")
PY
"$folder/venv/bin/python" check.py
