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
    local mirror security scripts=${DEBOOTSTRAP_DIR:-/usr/share/debootstrap}/scripts script=()
    mirror=$("$tools/deps.sh" mirror Debian)
    security=$("$tools/deps.sh" mirror Debian-Security)
    # A suite that is newer than debootstrap is made like the newest that it knows.
    [ -e "$scripts/$suite" ] || script=("$scripts/sid")
    rm -rf "$root.new"
    debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$root.new" "$mirror" "${script[@]}" >&2
    carry_over "$root.new"
    echo "deb $mirror $suite main" >"$root.new/etc/apt/sources.list"
    add_if_there "deb $mirror $suite-updates main"
    [ -z "$security" ] || add_if_there "deb $security $suite-security main"
    chroot "$root.new" apt-get -qq update
    mv "$root.new" "$root"
}

# A suite that is not released may have no updates, or none that are still valid.
add_if_there() {
    echo "$1" >"$root.new/etc/apt/sources.list.d/added.list"
    if chroot "$root.new" apt-get -qq update >/dev/null 2>&1; then
        echo "$1" >>"$root.new/etc/apt/sources.list"
    else
        echo "left out, as apt cannot use it: $1" >&2
    fi
    rm "$root.new/etc/apt/sources.list.d/added.list"
}

# How this machine reaches its package sources; the clean one must reach them the same way.
carry_over() {
    local file
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e "$file" ] || cp -L "$file" "$1$file"
    done
    apt-config dump --format '%F "%v";%n' Acquire::http Acquire::https Acquire::Check-Valid-Until \
        Acquire::Check-Date >"$1/etc/apt/apt.conf.d/90carried-over"
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
carry_over "$root"
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
