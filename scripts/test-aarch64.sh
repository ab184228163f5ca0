#!/usr/bin/env bash
# Builds the project for aarch64 and runs it under qemu's user emulation, on three emulated processors: Cortex-A72 (NEON),
# Neoverse-N1 (NEON and dotprod) and qemu's "max" (i8mm too). Emulation shows that results are right; it says nothing of speed.
#
# Debian's packages do it: a compiler, its arm64 standard library (unpacked under target/, not installed), a cross linker and
# the emulator. Nothing is installed here; what is missing is named.
# --full adds the tests that compare every thread count and step size, which take most of an hour in emulation.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=aarch64-unknown-linux-gnu
full=${1:-}

missing=()
for package in rustc-web gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "missing; install with: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# The arm64 standard library of the very same compiler, fetched beside the machine's own packages.
version=$(dpkg-query -W -f '${Version}' rustc-web)
root=$PWD/target/aarch64/toolchain-$version
if [ ! -d "$root/sysroot/lib/rustlib/$triple" ]; then
    echo "fetching libstd-rust-web-dev $version for arm64 into $root"
    rm -rf "$root"
    mkdir -p "$root/lists/partial" "$root/sysroot/lib/rustlib"
    arm=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$root/lists")
    (
        cd "$root"
        apt-get "${arm[@]}" -qq update
        apt-get "${arm[@]}" -qq download "libstd-rust-web-dev=$version"
        dpkg -x libstd-rust-web-dev_*_arm64.deb package
    )
    host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
    ln -s "/usr/lib/rustlib/$host" "$root/sysroot/lib/rustlib/$host"
    ln -s "$root/package/usr/lib/rustlib/$triple" "$root/sysroot/lib/rustlib/$triple"
fi

export RUSTC=/usr/bin/rustc CARGO_TARGET_DIR=$PWD/target/aarch64
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot=$root/sysroot"

# All at once: a build of other packages together would have other features, and begin again.
packages=(core memory quant cpu model inference training cli)
targets=(--lib --test handmade --test device --test reference --test usage)
if [ "$full" = --full ]; then
    targets=(--lib --tests)
fi
built=$(mktemp)
trap 'rm -f "$built"' EXIT
cargo test --locked --target "$triple" "${packages[@]/#/-pbitnet-}" "${targets[@]}" --no-run 2>&1 | tee "$built"

test() { # cpu, package, its test or "lib", arguments
    local name=$3 executable
    if [ "$name" = lib ]; then name=bitnet_$2; fi
    executable=$(sed -n "s|^ *Executable .* (\(.*/$name-[0-9a-f]*\))\$|\1|p" "$built")
    echo
    echo "== bitnet-$2, $3, on an emulated $1: ${*:4}"
    (
        cd "crates/bitnet-$2"
        export CARGO_MANIFEST_DIR=$PWD
        QEMU_CPU=$1 qemu-aarch64-static -L /usr/aarch64-linux-gnu "$(realpath "../../$executable")" "${@:4}"
    )
}
# pool::model tries all orders of memory accesses by itself, whatever the processor.
slow=(--skip pool::model --skip bits_do_not_depend_on --skip adversarial_rows_and_vectors)
# The emulator takes the advice to make pages resident, and does nothing.
emulated=(--skip resident_blocks_are_so_before_they_are_written)
for package in core memory quant cpu model inference; do
    test max $package lib "${slow[@]:0:2}" "${emulated[@]}"
done
if [ "$full" = --full ]; then
    for tests in crates/bitnet-{core,memory,quant,cpu,model,inference}/tests/*.rs; do
        package=${tests#crates/bitnet-}
        test max "${package%%/*}" "$(basename "$tests" .rs)"
    done
    left_out="pool::model, memory that is resident before it is written"
else
    test max quant handmade
    test max memory device
    test max model reference "${slow[@]}" --nocapture
    left_out="pool::model, memory that is resident before it is written, bits_do_not_depend_on_..., bitnet-model's synthetic models, bitnet-inference's damaged files (--full runs them)"
fi
# Whole runs of training take longer than everything else here; what is left is each operation with its gradient, and that the
# model that is trained computes what inference does.
test max training lib ops quantizer optimizer states_are_those_of_inference
for cpu in cortex-a72 neoverse-n1; do
    test "$cpu" cpu lib kernels self_test "${slow[@]}"
    test "$cpu" model reference logits_have_the_same_bits --nocapture
done
for cpu in cortex-a72 neoverse-n1 max; do
    echo
    echo "== bitnet doctor on an emulated $cpu"
    QEMU_CPU=$cpu qemu-aarch64-static -L /usr/aarch64-linux-gnu "$CARGO_TARGET_DIR/$triple/debug/bitnet" doctor
done
echo
echo "left out: $left_out; SVE and Apple's AMX, for which there are no kernels; every real ARM processor"
