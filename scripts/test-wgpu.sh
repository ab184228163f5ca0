#!/usr/bin/env bash
# Runs the GPU backend on Mesa's software Vulkan (lavapipe), which shows that results are right and says nothing of speed: every
# operation of inference against the CPU backend, every one of training against the test kit's, whole models against the reference, and the
# command line.
#
# Nothing is installed here; what is missing is named.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for package in libvulkan1 mesa-vulkan-drivers; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "missing; install with: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
# Of several drivers, the loader takes lavapipe alone.
VK_DRIVER_FILES=$(echo /usr/share/vulkan/icd.d/lvp_icd.*.json)
export VK_DRIVER_FILES VK_ICD_FILENAMES=$VK_DRIVER_FILES REQUIRE_DEVICE=1

cargo test --locked -p bitnet-wgpu -- --nocapture
cargo build --locked -p bitnet-cli
bitnet=target/debug/bitnet
model=tests/fixtures/bitnet-packed

echo
echo "== bitnet doctor"
$bitnet doctor --offline | grep wgpu:0

echo
echo "== bitnet run: the answer is the processor's"
for device in cpu wgpu:0; do
    $bitnet run $model "ships at night" -n 32 --temp 0 --device $device | tee "target/answer-${device%%:*}"
done
cmp target/answer-cpu target/answer-wgpu

echo
echo "== what the device's memory is for"
$bitnet bench $model -p 8 -n 8 -r 1 --device wgpu:0 --memory | sed -n '/^memory of wgpu:0/,$p' | tee target/answer-memory
grep -q '^| weights ' target/answer-memory
grep -q '^| kv ' target/answer-memory

echo
echo "== what the device's time went to"
$bitnet bench $model -p 8 -n 8 -r 1 --device wgpu:0 --profile | sed -n '/of the device$/,$p' | tee target/answer-profile
grep -q '^| Gemv ' target/answer-profile

echo
echo "== a cache of q8_0"
$bitnet run $model "ships at night" -n 32 --temp 0 --device wgpu:0 --cache-type q8_0

echo
echo "== a device that is not there"
code=0
$bitnet run $model "ships at night" --device wgpu:99 || code=$?
test $code = 2

echo "passed"
