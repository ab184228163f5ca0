#!/usr/bin/env bash
# The tests of bitnet-memory (pool, buffers, steps, arena, sources) twice: under valgrind's memcheck, which finds reads and writes outside
# of blocks or after they were given back, decisions by what was never written, and what is left over; and with the compiler's
# AddressSanitizer, which knows the program's own stack and globals too and is fast enough for all cases of the properties. What the pool
# and arenas cut from a block is one block to both of them: who has which part is what the tests' models know.
# Loom's model switches stacks, which neither follows; it has checks of its own. Needs valgrind, python3, and for the second part the
# runtime that rustup's toolchains for x86-64 Linux come with (tested is whether it is there).
set -euo pipefail
cd "$(dirname "$0")/.."

binary() { # of the unit tests, and of the short day of tests/fragmentation.rs
  cargo test -p bitnet-memory --lib --test fragmentation --no-run --message-format=json-render-diagnostics "$@" \
    | python3 -c 'import json,sys
for m in map(json.loads, sys.stdin):
    if m.get("executable"): print(m["executable"])'
}

built=$(binary)
mapfile -t binaries <<<"$built"
(
  export PROPTEST_CASES=${PROPTEST_CASES:-8}
  cd crates/bitnet-memory
  for b in "${binaries[@]}"; do
    # A thread's own data of the test harness are still reachable in the end.
    valgrind --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite "$b" --skip model
  done
)

host=$(rustc -vV | sed -n 's/^host: //p')
if ! ls "$(rustc --print sysroot)/lib/rustlib/$host/lib/"*rt.asan* >/dev/null 2>&1; then
  echo "not run: AddressSanitizer, whose runtime this toolchain has not"
  exit 0
fi
# Sanitizers are an unstable flag of the stable compiler, which this variable allows. A target that is named keeps flags away from build
# scripts and macros.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
built=$(binary --target "$host" --target-dir target/sanitized)
mapfile -t binaries <<<"$built"
cd crates/bitnet-memory
# Requests for more than there is are to fail, not to end the tests.
export ASAN_OPTIONS=allocator_may_return_null=1
for b in "${binaries[@]}"; do "$b" --skip model; done
