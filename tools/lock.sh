#!/usr/bin/env bash
# Pins requirements/*.in, with hashes, into *.txt for CPython 3.11 and newer on Linux.
#
#   tools/lock.sh PYTHON            keep the pins that still fit
#   tools/lock.sh PYTHON --upgrade  take the newest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../requirements"

python=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uv

# uv has its own list of certificate authorities; the machine's may know more.
[ -n "${SSL_CERT_FILE:-}" ] || [ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

pin() {
    local name=$1
    shift
    "$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --override override.in "$@" "$name.in" -o "$name.txt" >/dev/null
    # All of it is for Linux, so saying so on every line is noise.
    sed -i "s/ ; sys_platform == 'linux' / /; s/ and sys_platform == 'linux'//" "$name.txt"
    sed -i "1i # Written by 'make lock' from $name.in." "$name.txt"
    echo "requirements/$name.txt: $(grep -c == "$name.txt") packages"
}

pin server "$@"
pin build --constraint server.txt "$@"
pin dev --constraint server.txt --constraint build.txt "$@"
pin model --no-deps "$@"
