#!/usr/bin/env bash
# Cross-build for aarch64 and run the tests of the kernels, and the main ones of the runtime, under qemu: on a CPU with
# plain Advanced SIMD, on one with int8 dot products and half precision, on one with int8 matrix products.
#
#     tools/aarch64/test.sh [FOLDER]        the tool chain is put there unless it is there (default: target/a64-tools)
#
# Where it cannot be had the tests are skipped with a message.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(realpath -m "${1:-target/a64-tools}")
if [ ! -f "$folder/env.sh" ]; then
    status=0
    bash tools/aarch64/setup.sh "$folder" || status=$?
    if [ "$status" = 3 ]; then
        echo "aarch64: SKIPPED, there is no tool chain on this machine (see above)"
        exit 0
    fi
    [ "$status" = 0 ] || exit "$status"
fi
# shellcheck source=/dev/null
. "$folder/env.sh"
# Another compiler than that of x86-64: a folder of its own spares rebuilding both at each switch.
export CARGO_TARGET_DIR=target/a64
unset RUSTUP_TOOLCHAIN

cargo test --release --quiet --package mnnq-kernels --package mnnq-core --lib --no-run
# Everything once, on the CPU that has all kernels; on the others the families that have kernels of their own there.
families=(_i8 gemm_w4 gemm_half quantize cpu dispatch)
for pair in cortex-a72:neon neoverse-n1:dotprod max:i8mm; do
    cpu=${pair%:*}
    echo "aarch64: $cpu, expecting ${pair#*:}"
    export QEMU_CPU=$cpu MNNQ_EXPECT_ISA=${pair#*:}
    if [ "$cpu" = max ]; then families=(); fi
    cargo test --release --quiet --package mnnq-kernels --lib -- ${families[@]+"${families[@]}"}
done
cargo test --release --quiet --package mnnq-core --lib
python3 tools/count_instructions.py --folder "$folder" --check
