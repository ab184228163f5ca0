#!/usr/bin/env bash
# The tests of bitnet-memory under valgrind's memcheck: reads and writes outside of blocks, after they were given back, of what was never
# written, and what is left over. Loom's model switches stacks, which memcheck does not follow; it has checks of its own.
# Needs valgrind and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(cargo test -p bitnet-memory --lib --no-run --message-format=json \
  | python3 -c 'import json,sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')
export PROPTEST_CASES=${PROPTEST_CASES:-8}
cd crates/bitnet-memory
# A thread's own data of the test harness are still reachable in the end.
valgrind --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite "$binary" --skip model "$@"
