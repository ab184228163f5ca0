#!/usr/bin/env bash
# Kernels that are compiled at run time, without a GPU: NVRTC itself compiles each of them, for each architecture, and the command line
# finds, keeps and uses them on the stand-in for the driver's library (scripts/test-cuda-shim.sh), which runs the kernels that were
# compiled ahead instead: this shows that what is around the machine code is right, and nothing of its speed. Needs Python, and the
# network the first time: the compiler comes from PyPI, at the version below.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${NVRTC_VENV:-target/cuda-nvrtc}
if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-cuda-nvrtc==13.0.88
    touch "$venv/ready"
fi
nvrtc=$(cd "$venv" && echo "$PWD"/lib/python3*/site-packages/nvidia/cu13/lib)
scripts/test-cuda-shim.sh --build-only >/dev/null
shim=$PWD/target/cuda-shim
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
    echo "$1" >&2
    cat "$dir"/told >&2
    exit 1
}

echo "== NVRTC compiles every kernel of the table"
LD_LIBRARY_PATH=$nvrtc REQUIRE_NVRTC=1 cargo test --quiet --locked -p bitnet-cuda --lib fixed

cargo build --quiet --locked -p bitnet-cli
model=tests/fixtures/bitnet-packed
export XDG_CACHE_HOME=$dir/cache BITNET_TUNING=$dir/tuning.json
bitnet() { # folders of libraries, arguments
    LD_LIBRARY_PATH=$1 target/debug/bitnet "${@:2}" 2>"$dir/told"
}
of() { python3 -c "import json, sys; found = json.load(open(sys.argv[1])); print($2)" "$1"; }
answer() { # folders of libraries, where the answer goes, flags
    bitnet "$1" run "$model" "ships at night" -n 8 --temp 0 --ignore-eos -c 256 "${@:3}" >"$2" || fail "no answer"
}
files() { find "$dir/cache" -name '*.cubin' | wc -l; }
answer "$shim" "$dir/want" --device cpu

echo "== without NVRTC"
bitnet "$shim" tune "$model" --device cuda:0 --seconds 5 --json >"$dir/tuned" || fail "tune without NVRTC"
[ "$(of "$dir/tuned" 'len(found["products"]) > 2, found["fixed"], "is not found" in found["compiler"]')" = "True [] True" ] ||
    fail "products alone: $(<"$dir/tuned")"
bitnet "$shim" doctor --offline >"$dir/page"
grep -q '^NVRTC .*is not found; kernels that were compiled ahead do without' "$dir/page" || fail "doctor says that there is none"
grep -q 'shim, sm_90, driver 13000, kernels .*: [0-9]* products, 0 kernels' "$dir/page" || fail "doctor knows the GPU's tuning"
[ ! -e "$dir/cache" ] || fail "something was compiled"
bitnet "$shim" bench "$model" --device cuda:0 -p 24 -n 0 -r 1 -o json >"$dir/bench" || fail "bench"
[ "$(of "$dir/bench" 'found[0]["tuned"], len(found[0]["gpu_kernels"]["products"]) > 2')" = "True True" ] ||
    fail "bench says what was used: $(<"$dir/bench")"

echo "== with NVRTC"
bitnet "$shim:$nvrtc" tune "$model" --device cuda:0 --seconds 120 --json >"$dir/tuned" || fail "tune"
compared=$(of "$dir/tuned" 'len(found["fixed"])')
[ "$compared" -ge 2 ] && [ "$(files)" = "$compared" ] || fail "$compared compared, $(files) kept: $(<"$dir/tuned")"
[ "$(of "$dir/tuned" 'found["compiler"]')" = None ] || fail "all were compiled"
bitnet "$shim:$nvrtc" doctor --offline >"$dir/page"
grep -q '^NVRTC  *13.0' "$dir/page" || fail "doctor says which it is"

echo "== what is kept is used, compiled anew where it is damaged, and done without where it cannot be"
# As if each of them had been faster.
python3 - "$dir" <<'PYTHON'
import json, sys
folder = sys.argv[1]
tuning, tuned = (json.load(open(f"{folder}/{name}")) for name in ("tuning.json", "tuned"))
[gpu] = tuning["gpus"].values()
gpu["fixed"] = [kernel["kernel"] for kernel in tuned["fixed"]]
json.dump(tuning, open(f"{folder}/tuning.json", "w"))
PYTHON
same() { cmp -s "$dir/answer" "$dir/want" || fail "$1: another answer"; }
answer "$shim" "$dir/answer" --device cuda:0
same "from the cache"
whole=$(cat "$dir"/cache/bitnet/kernels/*.cubin | sha256sum)
for file in "$dir"/cache/bitnet/kernels/*.cubin; do head -c 300 /dev/urandom >"$file"; done
answer "$shim" "$dir/answer" --device cuda:0
same "a damaged cache and no NVRTC"
answer "$shim:$nvrtc" "$dir/answer" --device cuda:0 --no-fixed-kernels
same "--no-fixed-kernels"
[ "$(cat "$dir"/cache/bitnet/kernels/*.cubin | sha256sum)" != "$whole" ] || fail "--no-fixed-kernels compiles none"
answer "$shim:$nvrtc" "$dir/answer" --device cuda:0
same "a damaged cache"
[ "$(grep -c '^compiling .*, which the cache has lost$' "$dir/told")" = "$compared" ] || fail "it is said"
[ "$(cat "$dir"/cache/bitnet/kernels/*.cubin | sha256sum)" = "$whole" ] || fail "compiled anew"
sed -i 's/gemv/gmev/' "$dir/tuning.json"
answer "$shim" "$dir/answer" --device cuda:0
same "a damaged tuning"
grep -q "warning: .*it names a kernel" "$dir/told" || fail "a damaged tuning is told"
echo "passed"
