#!/usr/bin/env bash
# Training on the CPU beside PyTorch: the same model of 12.2 million parameters, in turn (A B C D, A B C D), with the best step of each run.
#
#   scripts/bench-training.sh [THREADS [ROUNDS]]      2 threads and 3 rounds by default
#
# PyTorch comes into a virtual environment in $RIVALS, ~/.cache/bitnet-rivals by default (about 2 GB with what it depends on). Run
# it on a machine that does nothing else. Needs python3 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."
threads=${1:-2} rounds=${2:-3} steps=8
rivals=${RIVALS:-$HOME/.cache/bitnet-rivals}
python=$rivals/torch/bin/python
if ! "$python" -c 'import torch' 2>/dev/null; then
    mkdir -p "$rivals"
    python3 -m venv "$rivals/torch"
    "$rivals/torch/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
fi
cargo build --locked --release -p bitnet-training --bench step
ours=$(cargo bench --locked -p bitnet-training --bench step --no-run 2>&1 | sed -n 's/.*(\(.*\))$/\1/p')

run() { # name, command
    local last
    last=$("${@:2}" | tee /dev/stderr | tail -n 1)
    echo "$1 $(sed -E 's/best ([0-9]+) tokens\/s peak ([0-9]+) MiB/\1 \2/' <<<"$last")"
}
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for ((round = 0; round < rounds; round++)); do
    run bitnet-bf16 "$ours" "$threads" "$steps" bf16 >>"$results"
    run torch-bf16 "$python" scripts/torch-training.py "$threads" "$steps" bf16 >>"$results"
    run bitnet-f32 "$ours" "$threads" "$steps" f32 >>"$results"
    run torch-f32 "$python" scripts/torch-training.py "$threads" "$steps" f32 >>"$results"
done
python3 - "$results" <<'END'
import sys
from statistics import median

rows = {}
for line in open(sys.argv[1]):
    name, speed, peak = line.split()
    rows.setdefault(name, []).append((float(speed), int(peak)))
print("| | tokens/s, median (range) | peak MiB |\n|---|---|---|")
for name, all in rows.items():
    speeds = [speed for speed, _ in all]
    print(f"| {name} | {median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {max(peak for _, peak in all)} |")
for ours, theirs in (("bitnet-f32", "torch-f32"), ("bitnet-bf16", "torch-bf16"), ("bitnet-bf16", "torch-f32")):
    ratios = [a / b for (a, _), (b, _) in zip(rows[ours], rows[theirs])]
    memory = max(p for _, p in rows[ours]) / max(p for _, p in rows[theirs])
    print(f"{ours} / {theirs}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times the speed, {memory:.2f} of the memory")
END
