#!/bin/sh
# Real clients against a real server: the `openai` and `anthropic` packages, pinned, in a virtual environment of their own.
#   scripts/clients.sh [path to bitnet]
set -eu
cd "$(dirname "$0")/.."
bitnet=${1:-target/release/bitnet}
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openai==3.57.0 anthropic==2.14.0
"$bitnet" serve tests/fixtures/bitnet-packed --port 0 2>"$work/log" &
server=$!
tries=0
until grep -q '^ready' "$work/log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat "$work/log"; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' "$work/log")
"$work/venv/bin/python" scripts/clients.py "$url" bitnet-packed
