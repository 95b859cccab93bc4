#!/usr/bin/env bash
# Installs packages on a clean Debian: tests/dist/inside.sh says what is tried.
#
#   tests/dist/run.sh [SUITE]
#
# Of this machine's release: those in build/dist. Of another: they are built there, in a root of its own.
# Needs root and debootstrap. Bare roots are kept in /var/tmp for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck disable=SC1091 # it is the machine's
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
suite=${1:-$own}
bare=/var/tmp/ragstone-dist-$suite
root=$(mktemp -d "$bare.XXXXXX")
trap 'rm -rf "$root"' EXIT
tools/debian_root.sh "$bare" "$suite" true

fresh_root() {
    rm -rf "$root"
    cp -a "$bare" "$root"
}

packages=build/dist
if [ "$suite" != "$own" ]; then
    fresh_root
    tools/debian_root.sh "$root" "$suite" sh -c 'make deps && make dist'
    packages=$(mktemp -d "build/dist-$suite.XXXXXX")
    trap 'rm -rf "$root" "$packages"' EXIT
    cp "$root"/root/ragstone/build/dist/*.deb "$packages"
fi
fresh_root
mkdir "$root/root/dist"
cp "$packages"/*.deb "$root/root/dist"
tools/debian_root.sh "$root" "$suite" tests/dist/inside.sh
