#!/usr/bin/env bash
# What the command line makes of a list of devices: answers are the cpu's, what runs where is told, and what cannot be had is refused with
# the list of what can. scripts/test-cuda-shim.sh runs this with its stand-in for the driver's library, which has as many GPUs as are asked
# for (needs curl).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --locked -p bitnet-cli
bitnet=$PWD/target/debug/bitnet
model=tests/fixtures/bitnet-packed
dir=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$dir"' EXIT
export BITNET_TUNING=$dir/tuning.json BITNET_SHIM_DEVICES=2

fail() {
    echo "$1" >&2
    cat "$dir/told" >&2
    exit 1
}
told() { grep -q -- "$1" "$dir/told"; }
answers() { # flags
    "$bitnet" run "$model" "ships at night" -n 24 --temp 0 --ignore-eos -c 256 "$@" >"$dir/answer" 2>"$dir/told"
}
right() { cmp -s "$dir/answer" "$dir/want" || fail "$1: another answer"; }
refused() { # what is told, flags
    local code=0
    answers "${@:2}" || code=$?
    [ $code = 2 ] && told "$1" || fail "${*:2} is refused ($code)"
}

answers --device cpu
mv "$dir/answer" "$dir/want"
for devices in cuda:0,cuda:1 cuda:0,cpu cpu,cuda:1 cuda:0,cuda:0; do
    answers --device $devices
    right $devices
    told "${devices%,*} (1 of 2 layers), ${devices#*,} (1 of 2 layers)" || fail "$devices: which layers are where"
done
answers --device cuda:1,cuda:0 -ts 1,1 --lora tests/fixtures/lora/qvd-r4
mv "$dir/answer" "$dir/adapted"
answers --device cpu --lora tests/fixtures/lora/qvd-r4
cmp -s "$dir/answer" "$dir/adapted" || fail "with an adapter: another answer"

echo "== rows of every matrix on each"
for devices in cuda:0,cuda:1 cuda:1,cuda:0 cuda:0,cuda:0; do
    answers --device $devices --split-mode row
    right "rows on $devices"
    told "$devices (rows of all layers)" || fail "$devices: what is told of rows"
done
answers --device cuda:0,cuda:1 -sm row -ts 1,3 --lora tests/fixtures/lora/qvd-r4
cmp -s "$dir/answer" "$dir/adapted" || fail "rows with an adapter: another answer"
# There are two layers.
answers --device cuda:0,cuda:1,cuda:0
right "rows because there are too few layers"
told "cuda:0,cuda:1,cuda:0 (rows of all layers)" || fail "rows are taken where layers do not do"

echo "== sessions go from one device to rows and back"
answers --device cuda:0 --session "$dir/of-one"
answers --device cuda:0,cuda:1 -sm row --session "$dir/of-rows"
cmp -s "$dir/of-one" "$dir/of-rows" || fail "a session of rows is another file"
answers --device cuda:0,cuda:1 -sm row --session "$dir/of-one"
right "rows with a session of one device"
answers --device cuda:0 --session "$dir/of-rows"
right "one device with a session of rows"

echo "== what cannot be had"
refused "NVIDIA GPUs alone, and cpu is none" --device cuda:0,cpu --split-mode row
refused "too few layers (2) for 3 devices" --device cuda:0,cuda:1,cuda:0 --split-mode layer
BITNET_SHIM_MEMORY=50000 refused "a share of all rows takes.*; there are cpu" --device cuda:0,cuda:1 --split-mode row
refused "there are cpu.*; cuda:0 (shim.*; cuda:1 (shim" --device cuda:0,cuda:2
refused "there are cpu.*; cuda:0 (shim" --device cuda:0,tpu
refused "too few layers (2) for 3 devices" --device cuda:0,cuda:1,cpu
refused "device is cuda:0,cuda:1" --device cuda:0,cuda:1 --tensor-split 1,2,3
refused "positive number" --device cuda:0,cuda:1 --tensor-split 1,0
refused "device is auto" --device auto --tensor-split 1
BITNET_SHIM_MEMORY=50000 refused "GB free.*; there are cpu.*cuda:1 (shim" --device cuda:0,cuda:1

echo "== a model that no GPU holds alone"
# So little memory is enough for weights and cache on both, and not for what is computed: the cpu takes over.
BITNET_SHIM_MEMORY=400000 answers --device auto
right "auto"
told "device: cuda:0,cuda:1 (cuda:0 with" && told "the cpu takes over from cuda:0,cuda:1" || fail "auto takes both"

failing() { # variable, numbers, what is told, flags: the answer is right, or there is none and it is told why
    local number code fails=0
    for number in $2; do
        code=0
        export "$1=$number"
        answers --device cuda:0,cuda:1 "${@:4}" || code=$?
        unset "$1"
        [ $code = 0 ] && right "$1=$number" && continue
        [ $code = 1 ] && told "$3" || fail "$1=$number fails ($code)"
        fails=$((fails + 1))
    done
    [ $fails -gt 5 ] || fail "$1: $fails failed"
}
echo "== a device of two that fails in the middle of an answer"
failing BITNET_SHIM_FAIL_LAUNCH "$(seq 20 31 700)" "cuda:[01] failed"
failing BITNET_SHIM_FAIL_LAUNCH "$(seq 20 61 1400)" "cuda:[01] failed" --split-mode row
echo "== no more memory, from some request for it on"
failing BITNET_SHIM_FAIL_ALLOC "$(seq 1 5 80)" "could not allocate" --split-mode row

echo "== a server that moves a model to both"
"$bitnet" serve "$model" --port 0 -c 256 --device cuda:0 2>"$dir/told" &
server=$!
for _ in $(seq 100); do
    url=$(sed -n 's/^listening on //p' "$dir/told")
    [ -z "$url" ] || break
    sleep 0.1
done
post() { curl -fsS "$url/$1" -H 'Content-Type: application/json' -d "$2"; }
ask='{"prompt": "ships at night", "n_predict": 24, "temperature": 0, "ignore_eos": true, "cache_prompt": false}'
content() { post completion "$ask" | grep -o '"content":"[^"]*"'; }
content >"$dir/one"
name=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d'"' -f4)
post models/load "{\"model\": \"$name\", \"device\": \"cuda:0,cuda:1\"}" >/dev/null
content | cmp -s - "$dir/one" || fail "on both: another answer"
curl -fsS "$url/metrics" | grep -q 'device="cuda:0,cuda:1"' || fail "metrics name both"
