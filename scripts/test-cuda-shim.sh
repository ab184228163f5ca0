#!/usr/bin/env bash
# Runs the CUDA backend without a GPU: its kernels, compiled for the processor, behind a stand-in for the driver's library
# (crates/bitnet-cuda/shim). It shows that results are right and catches races, stray accesses and missing waits; it says
# nothing of speed, nor of what nvcc makes of the kernels.
#
# Takes arguments of `cargo test -p bitnet-cuda`; with --build-only, leaves the library in target/cuda-shim and stops.
# BITNET_SHIM_SEED=n picks other schedules of the kernels' threads.
set -euo pipefail
cd "$(dirname "$0")/.."
crate=crates/bitnet-cuda
shim=$crate/shim
out=$PWD/target/cuda-shim

flags=(-std=c++20 -O2 -g1 -fPIC -Wall -Wextra -fvisibility=hidden)
[ "$(uname -m)" = x86_64 ] && flags+=(-mavx2 -mfma -mf16c)
# Floats as written; pointers of any type to any memory; a halt at what a GPU cannot do either.
kernel_flags=("${flags[@]}" -ffp-contract=off -fno-fast-math -fno-math-errno -fno-strict-aliasing -Wno-unknown-pragmas -Wno-unused-parameter
    -fsanitize=alignment,bounds,shift -fno-sanitize-recover=all -x c++ -include "$shim/shim.h")

compile() { # object, source, flags
    mkdir -p "$(dirname "$1")"
    [ -e "$1" ] && [ -z "$(find "$(dirname "$2")" "$shim" scripts/test-cuda-shim.sh -newer "$1" -print -quit)" ] && return
    g++ "${@:3}" -c "$2" -o "$1"
}
kernels() { # object, source
    compile "$1" "$2" "${kernel_flags[@]}"
    # shared.ld takes all of the object's .bss for static shared memory, which is local to the object.
    if objdump -t "$1" | grep -E ' g +O (\.bss|\*COM\*)' >&2; then
        echo "$2: a variable that is neither shared memory nor constant" >&2
        exit 1
    fi
}

for part in block memory driver launch; do compile "$out/$part.o" "$shim/$part.cpp" "${flags[@]}" -O3; done
parts=("$out"/{block,memory,driver,launch}.o)
link=(-fsanitize=undefined -static-libubsan -pthread -Wl,-z,nodelete,--no-undefined,--exclude-libs,ALL -Wl,-T,"$shim/shared.ld")

kernels "$out/selftest/kernels.o" "$shim/selftest.cu"
compile "$out/selftest/selftest.o" "$shim/selftest.cpp" "${flags[@]}"
g++ "$out"/selftest/{selftest,kernels}.o "${parts[@]}" "${link[@]}" -o "$out/selftest/selftest"
for seed in 0 1 2 3; do BITNET_SHIM_SEED=$seed "$out/selftest/selftest"; done

kernels "$out/kernels.o" "$crate/kernels/kernels.cu"
kernels "$out/training-kernels.o" "$crate/kernels/training.cu"
g++ -shared -Wl,-soname,libcuda.so.1 "$out"/{,training-}kernels.o "${parts[@]}" "${link[@]}" -o "$out/libcuda.so.1"
ln -sf libcuda.so.1 "$out/libcuda.so"
[ "${1:-}" = --build-only ] && exit

export LD_LIBRARY_PATH=$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
REQUIRE_DEVICE=1 cargo test --locked -p bitnet-cuda "$@"
[ $# = 0 ] || exit 0
fault() { # name, the variables that make it
    env "${@:2}" BITNET_FAULT="$1" cargo test --quiet --locked -p bitnet-cuda --test faults
}
fault "no device" BITNET_SHIM_DEVICES=0
fault "old driver" BITNET_SHIM_VERSION=12040
fault "two devices" BITNET_SHIM_DEVICES=2
fault "little memory" BITNET_SHIM_MEMORY=$((20 << 20))
fault "exclusive" BITNET_SHIM_COMPUTE_MODE=3
fault "prohibited" BITNET_SHIM_COMPUTE_MODE=2
fault "another process" BITNET_SHIM_MEMORY=$((64 << 20)) BITNET_SHIM_TAKEN=$((64 << 20)) BITNET_SHIM_TAKEN_FROM=4 BITNET_SHIM_TAKEN_UNTIL=9
fault "failed launch" BITNET_SHIM_FAIL_LAUNCH=3
fault "failed launch on another device" BITNET_SHIM_FAIL_LAUNCH=3 BITNET_SHIM_DEVICES=2
fault "little memory on one of two" BITNET_SHIM_MEMORY=$((20 << 20)) BITNET_SHIM_DEVICES=2
fault "failed launch of rows" BITNET_SHIM_FAIL_LAUNCH=12 BITNET_SHIM_DEVICES=2
fault "failed launch of training" BITNET_SHIM_FAIL_LAUNCH=3
fault "little memory for training" BITNET_SHIM_MEMORY=$((20 << 20))

echo
echo "== a model on two GPUs"
BITNET_SHIM_DEVICES=2 REQUIRE_DEVICE=1 cargo test --quiet --locked -p bitnet-cuda --test pipeline --test rows

echo
echo "== a model moves between the processor and the GPU under threads that generate"
BITNET_SHIM_DEVICES=2 REQUIRE_DEVICE=1 cargo test --quiet --locked -p bitnet-inference --test devices
scripts/check-fallback.sh
scripts/check-split.sh
