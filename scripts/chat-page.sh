#!/bin/sh
# The chat page in a real browser, driven by playwright-core (npm, pinned): what keys and buttons do, markdown, hostile answers, a
# phone. Needs node, npm and Chromium (CHROMIUM names it). Screenshots are left in the folder.
#   scripts/chat-page.sh [path to bitnet] [folder for screenshots]
set -eu
cd "$(dirname "$0")/.."
bitnet=${1:-target/release/bitnet}
work=$(mktemp -d)
shots=${2:-$work/shots}
mkdir -p "$shots"
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work/run"' EXIT
mkdir "$work/run"
cp scripts/chat-page.mjs "$work/run/"
(cd "$work/run" && npm install --silent --no-audit --no-fund playwright-core@1.64.1 >/dev/null)
"$bitnet" serve tests/fixtures/bitnet-packed --port 0 2>"$work/run/log" &
server=$!
tries=0
until grep -qs '^ready' "$work/run/log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat "$work/run/log"; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' "$work/run/log")
(cd "$work/run" && node chat-page.mjs "$url" "$shots")
echo "screenshots: $shots"
