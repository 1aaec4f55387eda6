#!/usr/bin/env bash
# Installs the vendor runtimes that the tests of the accelerators use, from PyPI, below the target directory: nothing of
# the system changes. `./test.sh` calls this; a runtime that cannot be had is left out, and the tests say what they skip.
#
#   ./runtimes.sh [DIRECTORY]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
directory="${1:-${CARGO_TARGET_DIR:-$PWD/target}/test-runtimes}"
mkdir -p "$directory"

# The two builds of ONNX Runtime share a name inside, so that each has a place of its own. Only their libraries are used,
# not their Python parts: no dependencies.
install() {
    local place="$directory/$1" requirement="$2"
    if [ "$(cat "$place/.installed" 2>/dev/null)" = "$requirement" ]; then
        return 0
    fi
    rm -rf "$place"
    if python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore $3 \
        --target "$place" $requirement </dev/null >/dev/null 2>&1; then
        printf '%s' "$requirement" >"$place/.installed"
    else
        rm -rf "$place"
        printf 'runtimes.sh: %s could not be installed\n' "$requirement" >&2
    fi
}

install onnxruntime onnxruntime==1.31.1 --no-deps
install openvino openvino==2026.4.1 --no-deps
install onnxruntime-openvino onnxruntime-openvino==1.24.1 --no-deps
# The official checker of ONNX files.
install onnx onnx==1.23.2 --only-binary=:all:
