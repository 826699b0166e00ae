#!/usr/bin/env bash
# Put what building and running aarch64 programs on x86-64 Debian needs into a folder, without root rights:
# Debian's rustc for both architectures, a cross linker, qemu's user mode, an arm64 C library and CPython.
#
#     tools/aarch64/setup.sh FOLDER [PACKAGE ...]      then: . FOLDER/env.sh
#
# Further packages are unpacked beside the host's tools. Exit status 3: the packages cannot be had here.
set -euo pipefail

folder=$(realpath -m "${1:?folder}")
shift
unavailable() {
    echo "aarch64: $1" >&2
    exit 3
}
command -v apt-get > /dev/null && command -v dpkg > /dev/null || unavailable "needs a Debian machine (apt-get, dpkg)"
[ "$(dpkg --print-architecture)" = amd64 ] || unavailable "needs an x86-64 machine"

# apt with a state of its own, so that arm64 need not be added to the machine's.
state=$folder/apt
mkdir -p "$state"/lists/partial "$state"/cache/archives/partial "$folder"/{host,arm64,bin}
cp /var/lib/dpkg/status "$state/status"
cat > "$state/apt.conf" << END
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Cache "$state/cache";
Dir::State "$state";
Dir::State::Lists "$state/lists";
Dir::State::Status "$state/status";
END
export APT_CONFIG=$state/apt.conf
apt-get -qq update || unavailable "the package lists cannot be read"

# unpack DIRECTORY PACKAGE ...
unpack() {
    local into=$1 packages
    packages=$(mktemp -d)
    shift
    (cd "$packages" && apt-get -qq download "$@") || unavailable "packages are missing: $*"
    for package in "$packages"/*.deb; do dpkg -x "$package" "$into"; done
    rm -rf "$packages"
}

tools=(rustc-web qemu-user binutils-aarch64-linux-gnu gcc-aarch64-linux-gnu libc6-dev-arm64-cross "$@")
# With those of their dependencies that the machine lacks.
missing=$(apt-get install --simulate --no-install-recommends "${tools[@]}" | awk '/^Inst/ && $3 !~ /^\[/ { print $2 }') ||
    unavailable "these packages cannot be installed here: ${tools[*]}"
# shellcheck disable=SC2086
unpack "$folder/host" $missing libstd-rust-web-dev:arm64
arm64=(libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1
    libtinfo6 libncursesw6 libreadline8 libdb5.3 libnsl2 libtirpc3 libcrypt1
    python3.11-minimal python3.11 libpython3.11-minimal libpython3.11-stdlib)
unpack "$folder/arm64" "${arm64[@]/%/:arm64}"

# The tools find their libraries in the folder; what they start does not.
libraries=$folder/host/usr/lib/x86_64-linux-gnu:$folder/host/lib/x86_64-linux-gnu
wrap() {
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$2" > "$folder/bin/$1"
    chmod +x "$folder/bin/$1"
}
usr=$folder/host/usr
emulator="$usr/bin/qemu-aarch64 -U LD_LIBRARY_PATH -L $folder/arm64"
wrap rustc-a64 "$usr/bin/rustc"
wrap rustdoc-a64 "$usr/bin/rustdoc"
wrap cc-a64 "$usr/bin/aarch64-linux-gnu-gcc-12 -B$usr/aarch64-linux-gnu/bin --sysroot=$folder/host"
wrap objdump-a64 "$usr/bin/aarch64-linux-gnu-objdump"
wrap qemu-a64 "$emulator"
wrap python-a64 "$emulator $folder/arm64/usr/bin/python3.11"
cat > "$folder/env.sh" << END
export RUSTC=$folder/bin/rustc-a64 RUSTDOC=$folder/bin/rustdoc-a64
export CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$folder/bin/cc-a64
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$folder/bin/qemu-a64
export PATH=$folder/bin:\$PATH
END
"$folder/bin/rustc-a64" --version
"$folder/bin/qemu-a64" --version | head -1
