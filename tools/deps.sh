#!/usr/bin/env bash
# Installs what ragstone needs from the distribution, and nothing when nothing is missing.
#
#   tools/deps.sh             install the server, plpython3, pg_cron, pgvector and python3-venv;
#                             with WITH_OCR=yes Tesseract, too, where apt has it
#   tools/deps.sh pg_config   print the pg_config of the newest installed server
#   tools/deps.sh advice      print what to put into postgresql.conf, if it is not there
#   tools/deps.sh python      print the interpreter that plpython3 is linked to
#   tools/deps.sh packages N  print the distribution's packages for PostgreSQL N
#   tools/deps.sh vector DIR  build pgvector from Debian's source and install it below DIR
#   tools/deps.sh mirror LABEL  print the mirror for packages labelled Debian or Debian-Security
#
# PG_CONFIG=/path/to/pg_config chooses the server.
set -euo pipefail

readonly SUPPORTED="18 17 16 15"
# The distribution whose pgvector source is built where the machine's own has no package.
readonly VECTOR_SUITE=trixie
readonly DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly CREATE_CLUSTER_DROPIN=/etc/postgresql-common/createcluster.d/ragstone-install.conf
readonly POLICY=/usr/sbin/policy-rc.d

say() { printf '%s\n' "ragstone: $*" >&2; }

die() {
    say "error: $1"
    shift
    [ $# -eq 0 ] || printf '%s\n' "$@" >&2
    exit 1
}

# --- what is there -------------------------------------------------------------------------

newest_pg_config() {
    local version
    for version in $SUPPORTED; do
        if [ -x "/usr/lib/postgresql/$version/bin/postgres" ]; then
            echo "/usr/lib/postgresql/$version/bin/pg_config"
            return
        fi
    done
}

pg_config_path() {
    if [ -n "${PG_CONFIG:-}" ]; then
        command -v "$PG_CONFIG" || die "PG_CONFIG=$PG_CONFIG is not a program"
    else
        newest_pg_config
    fi
}

server_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# The library, not the `python3` on the PATH, decides which packages a backend can import.
linked_python() {
    [ -n "$1" ] || return 0
    local library directory
    library=$(ldd "$("$1" --pkglibdir)/plpython3.so" 2>/dev/null |
        sed -nE 's/^\s*libpython3[^ ]* => ([^ ]+) .*/\1/p')
    [ -n "$library" ] || return 0
    directory=$(dirname "$(readlink -f "$library")")
    while [ "$directory" != / ]; do
        directory=$(dirname "$directory")
        local candidate
        candidate=$directory/bin/python$(basename "$library" | sed -E 's/^libpython(3\.[0-9]+).*/\1/')
        [ ! -x "$candidate" ] || { echo "$candidate"; return; }
    done
}

has_venv() { [ -n "$1" ] && "$1" -c 'import ensurepip, venv' 2>/dev/null; }

has_extension() { [ -e "$("$1" --sharedir)/extension/$2.control" ]; }

# Prints one word for each thing that is missing.
missing() {
    local pg_config=$1 python
    if [ -z "$pg_config" ]; then
        echo server plpython cron vector venv
        wants_ocr
        return
    fi
    [ -e "$("$pg_config" --pkglibdir)/plpython3.so" ] && has_extension "$pg_config" plpython3u || echo plpython
    has_extension "$pg_config" pg_cron || echo cron
    has_extension "$pg_config" vector || echo vector
    python=$(linked_python "$pg_config")
    has_venv "${python:-/usr/bin/python3}" || echo venv
    wants_ocr
}

# What can be done without is asked for by the tests alone, and not where it must be found first.
wants_ocr() {
    [ "${WITH_OCR:-}" != yes ] || command -v tesseract >/dev/null || ! command -v apt-get >/dev/null || echo ocr
}

# The one list of Debian's packages: Dockerfile and the Debian package are tested against it.
package_of() {
    case $1 in
        server) echo "postgresql-$2" ;;
        plpython) echo "postgresql-plpython3-$2" ;;
        cron) echo "postgresql-$2-cron" ;;
        vector) echo "postgresql-$2-pgvector" ;;
        venv) echo python3-venv ;;
    esac
}

packages() {
    local thing
    for thing in server plpython cron vector venv; do package_of "$thing" "$1"; done
}

# --- apt, with lists and downloads of its own ----------------------------------------------

apt_isolated() {
    local command=$1
    shift
    DEBIAN_FRONTEND=noninteractive "$command" -q -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o Dpkg::Use-Pty=0 "$@"
}

quietly() {
    if ! "$@" >"$work/log" 2>&1; then
        tail -n 25 "$work/log" >&2
        return 1
    fi
}

refresh_lists() {
    mkdir -p "$work/lists" "$work/cache"
    # The machine's lists save most of the download; what is newer is fetched beside them.
    cp -a /var/lib/apt/lists/. "$work/lists/" 2>/dev/null || true
    quietly apt_isolated apt-get update ||
        say "the package lists could not all be refreshed; going on with what is there"
}

candidate() { apt_isolated apt-cache policy "$1" | sed -nE 's/^ +Candidate: //p' | grep -v '(none)' || true; }

offers() { apt_isolated apt-cache madison "$1" | awk '{ print $3 }' | grep -qxF "$2"; }

installed_version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true; }

newest_offered() {
    local version
    for version in $SUPPORTED; do
        if [ -n "$(candidate "$(package_of server "$version")")" ] &&
            [ -n "$(candidate "$(package_of plpython "$version")")" ] &&
            [ -n "$(candidate "$(package_of cron "$version")")" ]; then
            echo "$version"
            return
        fi
    done
}

# plpython3 depends on its server's exact version: take the one that fits what is installed.
plpython_package() {
    local name version
    name=$(package_of plpython "$1")
    version=$(installed_version "postgresql-$1")
    if [ -n "$version" ] && offers "$name" "$version"; then
        name=$name=$version
    elif [ -n "$version" ]; then
        say "no plpython3 for the installed PostgreSQL $version: the server is upgraded to $(candidate "postgresql-$1")"
        upgrade=yes
    fi
    package=$name
}

# --- keeping other clusters out of it ------------------------------------------------------

running_clusters() { pg_lsclusters -h 2>/dev/null | awk '$4 ~ /online/ { print $1 "/" $2 }'; }

hold_services() {
    # One of our own may be left from an installation that was killed.
    if [ ! -e "$POLICY" ] || grep -q 'temporary, by ragstone' "$POLICY"; then
        printf '#!/bin/sh\n# temporary, by ragstone: installing must not start or restart a server\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
        made_policy=yes
    elif [ -n "$upgrade" ] && [ -n "$(running_clusters)" ] && [ "$(policy_answer)" != 101 ]; then
        die "upgrading PostgreSQL would restart $(running_clusters | tr '\n' ' ')" \
            "$POLICY lets it. Upgrade the server yourself at a time that suits you, then run this again."
    fi
    mkdir -p "$(dirname "$CREATE_CLUSTER_DROPIN")"
    printf 'create_main_cluster = false\n' >"$CREATE_CLUSTER_DROPIN"
    made_dropin=yes
}

policy_answer() {
    local answer=0
    "$POLICY" postgresql restart >/dev/null 2>&1 || answer=$?
    echo "$answer"
}

cleanup() {
    [ -z "$made_policy" ] || rm -f "$POLICY"
    if [ -n "$made_dropin" ]; then
        rm -f "$CREATE_CLUSTER_DROPIN"
        rmdir --ignore-fail-on-non-empty "$(dirname "$CREATE_CLUSTER_DROPIN")"
    fi
    rm -rf "$work"
}

# --- pgvector from Debian's source package -------------------------------------------------

# Where the machine's own configuration takes packages of that label from.
debian_mirror() {
    # shellcheck disable=SC2016 # apt fills these in
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(LABEL) $(REPO_URI)' |
        awk -v label="$1" '$1 == "Debian" && $2 == "main" && $3 == label { print $4; exit }'
}

fetch_vector_source() {
    local mirror
    mirror=$(debian_mirror Debian)
    [ -n "$mirror" ] || die "no package of pgvector for PostgreSQL $major here, and no Debian mirror to take its source from" \
        "Install pgvector 0.8 or newer for this server, then run this again."
    mkdir -p "$work/source/lists" "$work/source/cache"
    echo "deb-src [signed-by=$DEBIAN_KEYRING] $mirror $VECTOR_SUITE main" >"$work/source/sources.list"
    local isolated=(-q -o Dir::Etc::SourceList="$work/source/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::lists="$work/source/lists" -o Dir::Cache="$work/source/cache")
    cd "$work/source"
    if ! quietly apt-get "${isolated[@]}" update ||
        ! quietly apt-get "${isolated[@]}" source --download-only pgvector; then
        die "could not fetch the source of pgvector from $mirror"
    fi
    mkdir pgvector
    tar -xf pgvector_*.orig.tar.* -C pgvector --strip-components=1
}

# The headers are unpacked beside the build: their package would bring in all of LLVM.
unpack_headers() {
    local version package
    version=$(installed_version "postgresql-$major")
    cd "$work/source"
    for package in "postgresql-server-dev-$major" libpq-dev; do
        if offers "$package" "$version"; then package=$package=$version; fi
        quietly apt_isolated apt-get download "$package" || die "could not fetch $package"
    done
    for package in ./*.deb; do dpkg-deb -x "$package" headers; done
    cat >with_headers <<WRAPPER
#!/bin/sh
case "\$1" in
    --includedir | --includedir-server | --pkgincludedir) echo "$work/source/headers\$("$pg_config" "\$1")" ;;
    *) exec "$pg_config" "\$@" ;;
esac
WRAPPER
    chmod 755 with_headers
}

# Into the server, or below the folder given.
build_vector() {
    say "building pgvector from Debian's source package (less than a minute)"
    fetch_vector_source
    unpack_headers
    local flags=(-C "$work/source/pgvector" PG_CONFIG="$work/source/with_headers" OPTFLAGS="" with_llvm=no)
    quietly make -j"$(nproc)" "${flags[@]}" || die "pgvector did not build"
    quietly make "${flags[@]}" DESTDIR="${1:-}" install || die "pgvector could not be installed"
    [ -n "${1:-}" ] || return 0
    # Its headers went below the workspace's path, and would leave that folder on every server.
    rm -rf "$1$work"
    [ ! -d "$1$(dirname "$work")" ] || rmdir -p --ignore-fail-on-non-empty "$1$(dirname "$work")"
    cp "$work/source/pgvector/LICENSE" "$work/source/pgvector/CHANGELOG.md" "$1"
}

# --- the whole -----------------------------------------------------------------------------

packages_by_hand() {
    cat <<'LIST'
ragstone needs, for PostgreSQL 15 to 18:
  the server, PL/Python 3 (plpython3u), pg_cron, pgvector 0.8 or newer,
  and the venv module of the Python that plpython3.so is linked to; for scanned pages tesseract-ocr.
On Debian and Ubuntu: postgresql-N postgresql-plpython3-N postgresql-N-cron postgresql-N-pgvector python3-venv
On Fedora and RHEL (PGDG): postgresqlN-server postgresqlN-plpython3 pg_cron_N pgvector_N python3
Install them, then run this again.
LIST
}

make_workspace() {
    work=$(mktemp -d /var/tmp/ragstone-deps.XXXXXX)
    chmod 755 "$work" # apt downloads as an account of its own
    made_policy="" made_dropin="" upgrade="" vector_from_source="" major=""
    trap cleanup EXIT
    refresh_lists
}

become_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || die "these are missing: $*" "Installing them needs root: run 'tools/deps.sh' as root."
    say "installing needs root: asking sudo"
    exec sudo -- env PG_CONFIG="${PG_CONFIG:-}" WITH_OCR="${WITH_OCR:-}" bash "$0"
}

install_packages() {
    [ $# -gt 0 ] || return 0
    say "installing $*"
    hold_services
    quietly apt_isolated apt-get install -y --no-install-recommends "$@" ||
        die "apt could not install the packages" "Is the network there? 'apt-get update' shows what apt can reach."
}

install_missing() {
    local pg_config=$1 packages=() package=""
    shift
    local wanted=" $* "
    major=$(if [ -n "$pg_config" ]; then server_major "$pg_config"; else newest_offered; fi)
    [ -n "$major" ] || die "apt offers no PostgreSQL from 15 to 18 with PL/Python and pg_cron" \
        "Is the network there? 'apt-get update' shows what apt can reach." "$(packages_by_hand)"
    case $wanted in *" server "*) packages+=("$(package_of server "$major")") ;; esac
    case $wanted in *" plpython "*) plpython_package "$major" && packages+=("$package") ;; esac
    case $wanted in *" cron "*) packages+=("$(package_of cron "$major")") ;; esac
    case $wanted in *" venv "*) packages+=("$(package_of venv "$major")") ;; esac
    case $wanted in *" ocr "*) packages+=(tesseract-ocr tesseract-ocr-eng) ;; esac
    case $wanted in *" vector "*)
        if [ -n "$(candidate "$(package_of vector "$major")")" ]; then
            packages+=("$(package_of vector "$major")")
        else
            vector_from_source=yes
            command -v cc >/dev/null && command -v make >/dev/null || packages+=(gcc libc6-dev make)
        fi ;;
    esac
    install_packages "${packages[@]}"
    [ -z "$upgrade" ] || explain_upgrade
}

explain_upgrade() {
    local running
    running=$(running_clusters | sed -n "s|^$major/|$major |p")
    [ -n "$running" ] || return 0
    say "PostgreSQL $major was upgraded, and its running clusters were left alone."
    printf '%s\n' "Restart them soon: until then they run the old server, which may not load the new libraries:" >&2
    printf '%s\n' "$running" | sed 's/.*/  pg_ctlcluster & restart/' >&2
}

main() {
    local pg_config wanted
    pg_config=$(pg_config_path)
    wanted=$(missing "$pg_config" | tr '\n' ' ')
    [ -n "$wanted" ] || return 0
    command -v apt-get >/dev/null || die "only Debian and Ubuntu are installed by this script; missing: $wanted" "$(packages_by_hand)"
    become_root "$wanted"
    make_workspace
    # shellcheck disable=SC2086 # one word each
    install_missing "$pg_config" $wanted
    pg_config=$(pg_config_path)
    [ -z "$vector_from_source" ] || build_vector
}

vector_below() {
    local pg_config
    pg_config=$(pg_config_path)
    make_workspace
    major=$(server_major "$pg_config")
    build_vector "$1"
}

# --- what only the server's owner may change -----------------------------------------------

preloads_pg_cron() {
    grep -qrsE "^\s*shared_preload_libraries\s*=.*pg_cron" "/etc/postgresql/$1" \
        "$2"/postgresql.conf "$2"/postgresql.auto.conf
}

# Clusters of Debian's kind are looked at; where there are others, the advice is given anyway.
advice() {
    local pg_config version cluster data found=""
    pg_config=$(pg_config_path)
    version=$(server_major "$pg_config")
    if command -v pg_lsclusters >/dev/null; then
        while read -r _ cluster _ _ _ data _; do
            found=yes
            ! preloads_pg_cron "$version/$cluster" "$data" || return 0
        done < <(pg_lsclusters -h | awk -v version="$version" '$1 == version')
        [ -n "$found" ] || return 0
    fi
    cat <<'ADVICE'
Workers are started by pg_cron, which the server must preload. In its postgresql.conf, then restart it:
  shared_preload_libraries = 'pg_cron'
  cron.database_name = 'postgres'            # the database that ragstone is created in
  cron.use_background_workers = on
Then: psql -c 'create extension ragstone cascade'
ADVICE
}

case "${1:-install}" in
    install) main ;;
    pg_config) pg_config_path ;;
    advice) advice ;;
    packages) packages "$2" ;;
    vector) vector_below "$(realpath "$2")" ;;
    mirror) debian_mirror "$2" ;;
    python) linked_python "$(pg_config_path)" ;;
    *) die "unknown command: $1" ;;
esac
