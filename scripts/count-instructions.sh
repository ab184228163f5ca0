#!/usr/bin/env bash
# Counts instructions, which noisy machines count alike, and compares them with benches/instructions.txt:
# - of one decode step (one thread, position 0) with the scalar and the AVX2 kernels, by valgrind's callgrind;
# - of the inner loops of every instruction set's kernels, AVX-512 included (which valgrind does not know), read from assembly.
# Fails where a count has grown by more than 3 %. --record writes the file anew: after a change that is meant, and after a
# change of compiler.
# Needs valgrind, objdump and python3, on x86-64.
set -euo pipefail
cd "$(dirname "$0")/.."
record=benches/instructions.txt
counted=$(mktemp -d)
trap 'rm -rf "$counted"' EXIT

cargo build --locked --release -p bitnet-cli -p xtask
# Two layers of 2B-4T and an eighth of its vocabulary.
target/release/xtask synth --shape 2b-4t-slice --no-tokenizer -o "$counted/model.gguf" >"$counted/log" 2>&1
binary=target/release/bitnet
step='*Transformer*Decoder*step*'
{
    echo "# Written by scripts/count-instructions.sh --record with $(rustc --version)"
    for isa in scalar avx2; do
        valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect="$step" \
            "$binary" bench "$counted/model.gguf" -p 0 -n 1 -r 1 --no-warmup -t 1 --isa "$isa" -q -o jsonl \
            2>"$counted/log" >/dev/null || { cat "$counted/log" >&2; exit 1; }
        printf 'decode step, %s\tall\t1\t%s\n' "$isa" "$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$counted/log")"
    done
    python3 scripts/count_loops.py "$binary"
} >"$counted/now.txt"

if [ "${1:-}" = --record ]; then
    cp "$counted/now.txt" "$record"
    cat "$record"
    exit
fi
# A line: what, the instruction it is about, how many of it, instructions in all. What counts is how many stand beside one.
awk -F '\t' '
    /^#/ { next }
    NR == FNR { before[$1 "\t" $2] = $4 / $3; next }
    {
        key = $1 "\t" $2; now = $4 / $3
        if (!(key in before)) { printf "%-42s %-11s %14.2f  new: record it\n", $1, $2, now; wrong = 1; next }
        change = now / before[key] - 1
        printf "%-42s %-11s %14.2f  %+.2f %%%s\n", $1, $2, now, change * 100, (change > 0.03 ? "  GROWN" : "")
        wrong = wrong || (change > 0.03)
        delete before[key]
    }
    END {
        for (key in before) { printf "%s: not found any more: record it\n", key; wrong = 1 }
        exit wrong
    }
' "$record" "$counted/now.txt"
