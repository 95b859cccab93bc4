#!/usr/bin/env bash
# Runs a command in a clean Debian, in a copy of this repository at /root/ragstone:
# what a newcomer's machine would do.
#
#   tools/debian_root.sh DIR SUITE COMMAND…
#   tools/debian_root.sh /var/tmp/bookworm bookworm make demo
#
# DIR is made by debootstrap unless it is there. Needs root. What the command starts ends with it.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly tools

[ $# -ge 3 ] || { sed -nE '2,/^set /s/^# ?//p' "$0" >&2; exit 2; }
root=$(realpath -m "$1") suite=$2
shift 2

bootstrap() {
    command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
    local mirror security
    mirror=$("$tools/deps.sh" mirror Debian)
    security=$("$tools/deps.sh" mirror Debian-Security)
    debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$root.new" "$mirror" >&2
    {
        echo "deb $mirror $suite main"
        echo "deb $mirror $suite-updates main"
        [ -z "$security" ] || echo "deb $security $suite-security main"
    } >"$root.new/etc/apt/sources.list"
    chroot "$root.new" apt-get -qq update
    mv "$root.new" "$root"
}

# How this machine reaches its package sources; the clean one must reach them the same way.
carry_over() {
    local file
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || cp -L "$file" "$root$file"
    done
    apt-config dump --format '%F "%v";%n' Acquire::http Acquire::https Acquire::Check-Valid-Until \
        Acquire::Check-Date >"$root/etc/apt/apt.conf.d/90carried-over"
}

copy_repository() {
    rm -rf "$root/root/ragstone"
    mkdir -p "$root/root/ragstone"
    chmod 0700 "$root/root"
    (cd "$tools/.." && git ls-files -z --cached --others --exclude-standard |
        tar --create --null --files-from=- --ignore-failed-read) |
        tar --extract --directory "$root/root/ragstone" --no-same-owner
}

[ -e "$root" ] || bootstrap
carry_over
copy_repository
mapfile -t carried < <(env | grep -E '^(PIP_[A-Z_]+|SSL_CERT_FILE|https?_proxy|no_proxy|CI)=' || true)
# shellcheck disable=SC2016 # the inner shell expands these
exec unshare --mount --pid --fork --kill-child bash -c '
    root=$1; shift
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" "$@"' bash "$root" env -i "${carried[@]}" HOME=/root LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" \
    sh -c 'cd /root/ragstone && exec "$@"' sh "$@"
