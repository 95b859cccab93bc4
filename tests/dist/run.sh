#!/usr/bin/env bash
# Installs build/dist on a clean Debian of this machine's release: tests/dist/inside.sh says what is tried.
# Needs root and debootstrap. The bare root is kept in /var/tmp for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck disable=SC1091 # it is the machine's
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
bare=/var/tmp/ragstone-dist-$suite
root=$(mktemp -d "$bare.XXXXXX")
trap 'rm -rf "$root"' EXIT
tools/debian_root.sh "$bare" "$suite" true
cp -a "$bare/." "$root"
mkdir "$root/root/dist"
cp build/dist/*.deb "$root/root/dist"
tools/debian_root.sh "$root" "$suite" tests/dist/inside.sh
