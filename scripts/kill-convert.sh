#!/usr/bin/env bash
# Kills `bitnet convert` at 50 random moments for each kind of output, and fills the disk under it. Whatever happens, the target
# is what it was before or whole, a later run makes the same bytes, and nothing else is left in its directory.
# Needs Linux; the full disk is a tmpfs of 8 MB in a namespace of its own. SHAPE=0.7b is a larger model, which takes an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --locked --release -p bitnet-cli -p xtask
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
bitnet=$target/release/bitnet
"$target/release/xtask" synth --shape "${SHAPE:-2b-4t-slice}" --format hf-bf16 --no-tokenizer -o "$work/model" >/dev/null 2>&1

# Converts, and tells how long that lasted, in milliseconds.
convert() { # TYPE OUTPUT
    local begin
    begin=$(date +%s%N)
    "$bitnet" convert "$work/model" "$2" --to "$1" -q
    lasts=$((($(date +%s%N) - begin) / 1000000))
}

hashes() { # of all files of a target
    if [ -d "$1" ]; then (cd "$1" && sha256sum -- *); elif [ -e "$1" ]; then sha256sum <"$1"; else echo absent; fi
}

for type in i2_s hf-autobitlinear onnx; do
    out=$work/out && mkdir "$out"
    convert $type "$out/whole"
    whole=$(hashes "$out/whole")
    killed=0 left=0 round=0
    # Until 50 were killed: one that is done before its moment has come does not count.
    while [ $killed -lt 50 ]; do
        round=$((round + 1))
        [ $round -le 200 ] || { echo "$type: only $killed of $((round - 1)) could be killed"; exit 1; }
        # Files are replaced; directories must not be there.
        if [ $type = i2_s ]; then echo old >"$out/new"; else rm -rf "$out/new"; fi
        before=$(hashes "$out/new")
        "$bitnet" convert "$work/model" "$out/new" --to $type -q &
        sleep "$(awk -v ms=$((RANDOM * lasts / 32768)) 'BEGIN { print ms / 1000 }')"
        kill -9 $! 2>/dev/null || true
        wait $! 2>/dev/null || killed=$((killed + 1))
        # Between the temporary name and the target's own there is a moment; what it leaves is cleared away by the next run.
        if compgen -G "$out/.*.bitnet-part" >/dev/null; then left=$((left + 1)); fi
        now=$(hashes "$out/new")
        [ "$now" = "$before" ] || [ "$now" = "$whole" ] || { echo "$type, round $round: the target is neither"; exit 1; }
        rm -rf "$out/new"
        convert $type "$out/new"
        [ "$(hashes "$out/new")" = "$whole" ] || { echo "$type, round $round: other bytes"; exit 1; }
        [ "$(ls -A "$out" | tr '\n' ' ')" = "new whole " ] || { echo "$type, round $round: litter"; ls -A "$out"; exit 1; }
    done
    echo "$type: killed $killed times in $round runs of some $lasts ms, never a part of the target to be seen, every run after it made the same bytes;" \
        "something hidden was left $left times, and cleared away"
    rm -rf "$out"
done

unshare -rm bash -euc '
    mkdir "$2" && mount -t tmpfs -o size=8m tmpfs "$2"
    echo old >"$2/new.gguf"
    for out in "$2/new.gguf --to i2_s" "$2/new --to hf-autobitlinear"; do
        # shellcheck disable=SC2086
        if "$3" convert "$1/model" $out -q 2>"$2.err"; then echo "a full disk was not noticed"; exit 1; fi
        grep -q "No space left" "$2.err" || { cat "$2.err"; exit 1; }
    done
    [ "$(cat "$2/new.gguf")" = old ] && [ "$(ls -A "$2")" = new.gguf ] || { echo "a full disk left litter"; ls -A "$2"; exit 1; }
    echo "full disk: refused, the old file is there, and nothing else"
' _ "$work" "$work/full" "$bitnet"
