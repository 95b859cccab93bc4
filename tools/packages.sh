#!/usr/bin/env bash
# Installs pinned Python packages, and nothing when they are there already.
#
#   tools/packages.sh venv   PYTHON DIR FILE…   into a virtual environment
#   tools/packages.sh folder PYTHON DIR FILE…   into a plain folder, as the server imports them
#
# PYTHON is the interpreter plpython3 is linked to; another one means starting afresh.
set -euo pipefail

readonly PINNED=(--quiet --disable-pip-version-check --no-input --require-hashes --no-deps --only-binary ":all:")

die() {
    printf '%s\n' "ragstone: error: $1" >&2
    shift
    [ $# -eq 0 ] || printf '%s\n' "$@" >&2
    exit 1
}

# One stamp for each file, so that sets which share files do not undo each other.
stamp_of() {
    echo "$folder/.installed-$(basename "$1")-$({ "$python" -VV && cat "$1"; } | sha256sum | cut -c1-16)"
}

outdated() {
    local file
    for file in "${files[@]}"; do [ -e "$(stamp_of "$file")" ] || echo "$file"; done
}

# pip warns about much that is of no concern here; what it said is shown when it fails.
pip_install() {
    local from=$1 file=$2 said
    shift 2
    said=$("$from" -m pip install "${PINNED[@]}" "$@" -r "$file" 2>&1) || {
        printf '%s\n' "$said" | tail -n 15 >&2
        die "pip could not install $file" "Is the package index in reach? 'pip config list' shows which one is asked."
    }
}

new_venv() {
    "$python" -m venv "$1" || die "$python cannot make a virtual environment" "Run 'make deps' first."
}

update_venv() {
    local file
    if [ "$("$folder/bin/python" -VV 2>/dev/null)" != "$("$python" -VV)" ]; then
        rm -rf "$folder"
        new_venv "$folder"
    fi
    for file in "$@"; do
        rm -f "$folder/.installed-$(basename "$file")"-*
        pip_install "$folder/bin/python" "$file"
        touch "$(stamp_of "$file")"
    done
}

# The system's interpreter may have no pip of its own.
make_folder() {
    local file
    rm -rf "$folder" "$folder.new" "$folder.pip"
    new_venv "$folder.pip"
    for file in "${files[@]}"; do
        pip_install "$folder.pip/bin/python" "$file" --no-compile --target "$folder.new"
    done
    rm -rf "$folder.pip" "$folder.new/bin"
    mv "$folder.new" "$folder"
    for file in "${files[@]}"; do touch "$(stamp_of "$file")"; done
}

[ $# -ge 4 ] || die "usage: tools/packages.sh venv|folder PYTHON DIR FILE…"
kind=$1 python=$2 folder=$3
files=("${@:4}")
[ -n "$python" ] || die "no Python that plpython3 is linked to was found" "Run 'make deps' first."
[ -n "$(outdated)" ] || exit 0
mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9
mapfile -t todo < <(outdated)
[ ${#todo[@]} -gt 0 ] || exit 0
echo "ragstone: installing Python packages into $folder" >&2
case $kind in
    venv) update_venv "${todo[@]}" ;;
    folder) make_folder ;;
    *) die "unknown kind: $kind" ;;
esac
