#!/usr/bin/env bash
# Puts playwright-core into a directory and fails where there is no chromium. `prepare.sh DIRECTORY`
set -euo pipefail
command -v node >/dev/null && command -v npm >/dev/null
command -v chromium >/dev/null || command -v chromium-browser >/dev/null
mkdir -p "$1"
cd "$1"
if [ ! -d node_modules/playwright-core ]; then
    [ -f package.json ] || echo '{"private": true}' >package.json
    npm install --no-audit --no-fund --silent playwright-core@1 >&2
fi
