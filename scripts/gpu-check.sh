#!/usr/bin/env bash
# Checks the CUDA backend on a machine with an NVIDIA GPU: every operation, those of training too, and whole models against the bits of the
# processor, what happens when things go wrong, the tables of kernels, and models of real size from end to end. Takes less than 10 minutes.
#
#   scripts/gpu-check.sh --build DIR    builds what the check runs into DIR, on any machine (about 10 minutes)
#   scripts/gpu-check.sh DIR OUT        runs it, in a checkout of the same commit; needs nothing but the driver. Where python3 has
#                                       PyTorch, cuBLAS is timed too
#
# OUT gets the logs, and record.jsonl: one object a line, beginning with the machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --build ]; then
    dir=${2:?a directory}
    mkdir -p "$dir"
    built() { # the name of a test or benchmark; prints its program
        sed -n "s|.*Executable.*(\\(.*/$1-[0-9a-f]*\\))|\\1|p" "$dir/build.log" | tail -n 1
    }
    cargo test --locked --no-run -p bitnet-cuda 2>&1 | tee "$dir/build.log"
    for name in conformance models pipeline rows; do cp "$(built $name)" "$dir/$name"; done
    cp "$(built bitnet_cuda)" "$dir/choices"
    # The name of a test and of a benchmark.
    cp "$(built training)" "$dir/training-conformance"
    cargo bench --locked --no-run -p bitnet-cuda --benches 2>&1 | tee "$dir/build.log"
    for name in kernels training; do cp "$(built $name)" "$dir/$name"; done
    cargo build --locked --release -p bitnet-cli -p xtask
    cp target/release/{bitnet,xtask} "$dir"
    strip "$dir"/{conformance,models,pipeline,rows,choices,training-conformance,kernels,training,bitnet,xtask}
    exit
fi
dir=$(realpath "${1:?the directory that --build filled}")
out=$(realpath -m "${2:?a directory for results}")
mkdir -p "$out"
record=$out/record.jsonl
failed=0
say() { echo "$1" >>"$record"; echo "$1"; }
timed() { # name, seconds, command: a line with its outcome
    local name=$1 limit=$2 begin rc=0
    shift 2
    begin=$(date +%s%N)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || rc=$?
    say "{\"check\":\"$name\",\"rc\":$rc,\"milliseconds\":$((($(date +%s%N) - begin) / 1000000))}"
    [ $rc = 0 ] || { failed=1; tail -n 25 "$out/$name.log"; }
}
: >"$record"
say "{\"commit\":\"$(git rev-parse HEAD 2>/dev/null || echo unknown)\",\"gpu\":\"$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)\",\"date\":\"$(date -u +%FT%TZ)\"}"

# The model is written while the first checks run.
model=$out/2b4t.gguf
"$dir/xtask" synth --shape 2b-4t --output "$model" >"$out/synth.log" 2>&1 &
synth=$!
export REQUIRE_DEVICE=1 CARGO_MANIFEST_DIR=$PWD/crates/bitnet-cuda
timed conformance 100 "$dir/conformance" --test-threads 1
timed models 100 "$dir/models" --test-threads 1
# Two stages, and two halves of all rows, on one GPU where there is but one.
timed pipeline 60 "$dir/pipeline" --test-threads 1
timed rows 100 "$dir/rows" --test-threads 1
# Kernels that do the same: those for many tokens, and where NVRTC is found those that are compiled for fixed sizes.
timed choices 100 "$dir/choices" --nocapture
timed training-conformance 100 "$dir/training-conformance" --nocapture
wait $synth || { cat "$out/synth.log"; failed=1; }

timed kernels 140 "$dir/kernels" --bench
timed training 100 "$dir/training" --bench
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    timed cublas 100 python3 crates/bitnet-cuda/benches/cublas.py
else
    say '{"check":"cublas","not_run":"python3 has no PyTorch with CUDA"}'
fi

bench() { "$dir/bitnet" bench "$model" --device cuda:0 -o jsonl "$@" 2>>"$out/bench.err" | tee -a "$record"; }
bench -p 512 -n 128 -r 3 --cache-type f16,q8_0 || failed=1
bench -p 1 -n 128 --concurrency 64 -r 1 || failed=1
# What kernels for fixed sizes are worth here; the tuning is an error where logits are others with them.
"$dir/bitnet" tune "$model" --device cuda:0 --tuning "$out/tuning.json" --json 2>"$out/tune.err" | tee -a "$record" || failed=1
bench -p 512 -n 128 -r 3 --tuning "$out/tuning.json" || failed=1
exit $failed
