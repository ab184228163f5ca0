#!/usr/bin/env bash
# What the command line makes of a CUDA device that fails or that others use, when it is opened and in the middle of answers: with
# --device auto the cpu takes over, which is said, and no answer changes; with --require-device the error is told.
# scripts/test-cuda-shim.sh runs this with its stand-in for the driver's library, which makes devices fail (needs curl).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --locked -p bitnet-cli
bitnet=$PWD/target/debug/bitnet
model=tests/fixtures/bitnet-packed
dir=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$dir"' EXIT
# Nothing that was measured on this machine decides here.
export BITNET_TUNING=$dir/tuning.json
prompt=(run "$model" "ships at night" -n 24 --temp 0 --ignore-eos -c 256)
takes_over="; the cpu takes over from cuda:0"

fail() {
    echo "$1" >&2
    cat "$dir/told" >&2
    exit 1
}
told() { grep -q -- "$1" "$dir/told"; }
answers() { # variable that makes the device fail, or nothing; further flags
    env ${1:+"$1"} "$bitnet" "${prompt[@]}" --device auto "${@:2}" >"$dir/answer" 2>"$dir/told"
}
right() { cmp -s "$dir/answer" "$dir/want" || fail "$1: another answer"; }

"$bitnet" "${prompt[@]}" --device cpu >"$dir/want" 2>/dev/null
answers ""
right "a device that works"
told "device: cuda:0" && ! told "$takes_over" || fail "auto takes the GPU"

echo "== out of memory when the model is opened"
answers BITNET_SHIM_FAIL_ALLOC=2
right "when it is opened"
told "$takes_over" && ! told "; cuda:0" || fail "the cpu takes over when the model is opened"
code=0
answers BITNET_SHIM_FAIL_ALLOC=2 --require-device || code=$?
[ $code = 1 ] && told "could not allocate" && ! told "$takes_over" || fail "--require-device forbids it ($code)"

# Every request for memory fails once, from the first to the last; the same of launches, of which there are many.
each() { # name, variable, how far from one to the next
    local at=1 opened=0
    while answers "$2=$at"; right "$1 $at"; told "$takes_over"; do
        # The line that says where it runs comes before anything is answered.
        if told "; cuda:0"; then opened=$((opened + 1)) last=$at; else loading=$at; fi
        at=$((at + $3 + at / 20 * ($3 > 1)))
    done
    ((opened > 0)) || fail "$1: $opened of $at in the middle of an answer"
    echo "$1: $at, $opened of them in the middle of an answer"
}
each "requests for memory" BITNET_SHIM_FAIL_ALLOC 1
alloc=$last before=$loading
each "launches" BITNET_SHIM_FAIL_LAUNCH 13
launch=$last

echo "== --require-device in the middle of an answer"
for fault in BITNET_SHIM_FAIL_ALLOC=$alloc BITNET_SHIM_FAIL_LAUNCH=$launch; do
    code=0
    answers $fault --require-device || code=$?
    [ $code = 1 ] && told "; cuda:0" && ! told "$takes_over" || fail "$fault --require-device ($code)"
done

echo "== another process has the GPU to itself, or nobody may use it; the driver is too old"
refused() { # variable, exit code, what the error says
    answers "$1"
    right "$1 --device auto"
    told "$3" || fail "$1 --device auto says why"
    code=0
    env "$1" "$bitnet" "${prompt[@]}" --device cuda:0 >"$dir/answer" 2>"$dir/told" || code=$?
    [ $code = "$2" ] && told "$3" || fail "$1 --device cuda:0 ($code)"
    code=0
    answers "$1" --require-device || code=$?
    [ $code != 0 ] && told "$3" || fail "$1 --require-device ($code)"
}
refused BITNET_SHIM_COMPUTE_MODE=3 1 "another process has shim to itself.*nvidia-smi -c DEFAULT"
refused BITNET_SHIM_COMPUTE_MODE=2 2 "shim is closed to all processes.*nvidia-smi -c DEFAULT"
refused BITNET_SHIM_VERSION=12040 2 "version 580 or newer"
env BITNET_SHIM_VERSION=12040 "$bitnet" doctor --offline >"$dir/told"
told "cuda .*cannot be used: .*version 580 or newer" || fail "doctor tells of the old driver"
code=0
BITNET_SHIM_FAIL_ALLOC=$alloc "$bitnet" "${prompt[@]}" --device cuda:0 >"$dir/answer" 2>"$dir/told" || code=$?
[ $code = 1 ] && told "could not allocate.*nvidia-smi.*--device auto" || fail "no memory in the middle of an answer ($code)"

echo "== chat"
"$bitnet" chat "$model" --device cpu -n 24 --temp 0 -c 256 <<<"ships at night" >"$dir/want" 2>/dev/null
env BITNET_SHIM_FAIL_LAUNCH=$launch "$bitnet" chat "$model" --device auto -n 24 --temp 0 -c 256 <<<"ships at night" >"$dir/answer" 2>"$dir/told"
right "chat"
told "$takes_over" || fail "chat says it"

echo "== serve"
ask() { # file, which gets the answer's text, and what came as a whole beside it
    curl -sS "$url/v1/completions" -o "$1.json" -d '{"prompt": "ships at night", "max_tokens": 24, "temperature": 0, "ignore_eos": true}'
    grep -o '"text":"[^"]*"' "$1.json" >"$1" || true
}
begin() { # variables, flags; false where the server ends
    : >"$dir/told"
    env $1 "$bitnet" serve "$model" --port 0 -c 256 "${@:2}" 2>"$dir/told" &
    server=$!
    until told "^ready"; do
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.1
    done
    url=$(sed -n 's/^listening on //p' "$dir/told")
}
start() { begin "$@" || fail "the server has ended"; }
stop() {
    kill "$server" && wait "$server" || fail "an orderly end"
    server=
}
start NOTHING=1 --device cpu
ask "$dir/want"
[ -s "$dir/want" ] || fail "no answer"
stop
start BITNET_SHIM_FAIL_LAUNCH=$launch --device auto
clients=()
for n in 1 2 3 4; do ask "$dir/answer$n" & clients+=($!); done
wait "${clients[@]}"
ask "$dir/answer5"
for n in 1 2 3 4 5; do cmp -s "$dir/answer$n" "$dir/want" || { cat "$dir/answer$n"; fail "serve: another answer"; }; done
curl -sS "$url/metrics" >"$dir/metrics"
grep -q '^bitnet_device_takeovers_total{[^}]*} 1$' "$dir/metrics" || fail "the takeover is counted"
grep -q '^bitnet_build_info{.*device="cpu"' "$dir/metrics" || fail "the device is told"
[ "$(grep -c -- "$takes_over" "$dir/told")" = 1 ] || fail "it is said once"
code=$(curl -sS -o "$dir/answer" -w '%{http_code}' "$url/models/load" -d '{"model": "bitnet-packed", "device": "cuda:7"}')
[ "$code" = 422 ] || fail "a device that is not there: $code"
stop
# While another process has the GPU's memory, requests get an error that says so; all others are answered.
failed=0
for ((at = before + 1; at <= before + 13; at += 3)); do
    # Whoever needs memory asks some more times before that is an error.
    taken="BITNET_SHIM_TAKEN=$((4 << 30)) BITNET_SHIM_TAKEN_FROM=$at BITNET_SHIM_TAKEN_UNTIL=$((at + 9))"
    # It may come while the model is opened.
    if ! begin "$taken" --device cuda:0; then
        told "could not allocate" || fail "$taken: the server has ended"
        server=
        continue
    fi
    for n in 1 2 3 4 5; do
        ask "$dir/answer"
        cmp -s "$dir/answer" "$dir/want" && continue
        grep -q '"message":"[^"]*could not allocate.*"code":"device_failed"' "$dir/answer.json" || fail "$taken: $(<"$dir/answer.json")"
        failed=$((failed + 1))
    done
    cmp -s "$dir/answer" "$dir/want" || fail "$taken: no answer when the memory is back"
    stop
done
((failed > 0)) || fail "no request met the other process"
echo "another process takes memory and gives it back: $failed requests were told so"

start BITNET_SHIM_FAIL_LAUNCH=$launch --device auto --require-device
ask "$dir/answer"
until grep -q '"code":"device_failed"' "$dir/answer.json"; do
    cmp -s "$dir/answer" "$dir/want" || fail "neither right nor the error: $(<"$dir/answer.json")"
    ask "$dir/answer"
done
curl -sS "$url/health" | grep -q ok || fail "the server lives"
stop
echo "passed"
