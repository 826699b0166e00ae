#!/usr/bin/env bash
# Build the wheel for aarch64 (manylinux 2.28) and try it with an emulated CPython on three CPUs.
#
#     tools/aarch64/wheel.sh [FOLDER]       after tools/aarch64/test.sh, with its folder (default: target/a64-tools)
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(realpath -m "${1:-target/a64-tools}")
if [ ! -x "$folder/bin/python-a64" ]; then
    echo "aarch64: SKIPPED, there is no emulated Python (tools/aarch64/test.sh sets it up)"
    exit 0
fi
# zig links against an old C library; a linker named by the environment would win over it.
export RUSTC=$folder/bin/rustc-a64 CARGO_TARGET_DIR=target/a64-wheel
unset CARGO_BUILD_TARGET CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER RUSTUP_TOOLCHAIN
tools=target/a64-wheel/venv
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet maturin ziglang
PATH=$PWD/$tools/bin:$PATH maturin build --release --strip --zig --target aarch64-unknown-linux-gnu \
    --compatibility manylinux_2_28 --out dist/aarch64
site=target/a64-wheel/site
rm -rf "$site"
"$tools/bin/pip" install --quiet --target "$site" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --only-binary=:all: --python-version 3.11 dist/aarch64/mnnq-*.whl
for cpu in cortex-a72 neoverse-n1 max; do
    QEMU_CPU=$cpu PYTHONPATH=$site "$folder/bin/python-a64" tools/aarch64/smoke.py
done
