#!/usr/bin/env bash
# A private PostgreSQL cluster: own data directory, own Unix socket, no TCP port.
#
#   tools/cluster.sh start   [options]          make it if need be, start it, wait until it answers
#   tools/cluster.sh stop    [options]
#   tools/cluster.sh status  [options]          exit 0 when it runs
#   tools/cluster.sh env     [options]          print `export PGHOST=… PGPORT=… PGUSER=… PGDATABASE=…`
#   tools/cluster.sh psql    [options] -- ARGS  psql in it
#   tools/cluster.sh home    [options]          print the folder that holds data, socket and log
#   tools/cluster.sh destroy [options]          stop it and delete all of it
#
# Options: --dir DIR        default .cluster in this repository
#          --database NAME  default ragstone (made at start; the one pg_cron lives in)
#          --port N         default 54329 (only names the socket)
#          --set NAME=VALUE a server setting, may be repeated
# Database, port and settings are remembered: only `start` needs them.
# PG_CONFIG=/path/to/pg_config chooses the server.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly tools
# sockaddr_un holds 107 bytes, and libpq wants a margin.
readonly LONGEST_SOCKET_PATH=100

die() {
    printf '%s\n' "ragstone: error: $1" >&2
    shift
    [ $# -eq 0 ] || printf '%s\n' "$@" >&2
    exit 1
}

# --- whose it is and where it lies ---------------------------------------------------------

# PostgreSQL refuses to run as root.
server_account() { if [ "$(id -u)" -eq 0 ]; then echo postgres; else id -un; fi; }

# The server must not inherit PYTHONPATH and the like: its Python is not the caller's.
as_server() {
    local clean=(env -i "PATH=$PATH" LANG=C.UTF-8 LC_ALL=C.UTF-8 HOME="$home")
    if [ "$(id -u)" -eq 0 ]; then
        (cd / && runuser -u "$account" -- "${clean[@]}" "$@")
    else
        (cd / && "${clean[@]}" "$@")
    fi
}

reachable_by_server() {
    [ "$(id -u)" -ne 0 ] || (cd / && runuser -u "$account" -- test -x "$1") 2>/dev/null
}

socket_path_fits() {
    [ "$(printf %s "$1/socket/.s.PGSQL.65535" | wc -c)" -le "$LONGEST_SOCKET_PATH" ]
}

outside_home() { echo "/var/tmp/ragstone-$(printf %s "$dir" | sha256sum | cut -c1-12)"; }

# Sets home: DIR itself, or a folder in /var/tmp recorded in DIR/elsewhere.
find_home() {
    if [ -e "$dir/elsewhere" ]; then
        home=$(<"$dir/elsewhere")
    else
        home=$dir
    fi
}

choose_home() {
    find_home
    [ ! -e "$home/data" ] || return 0
    mkdir -p "$(dirname "$dir")"
    if reachable_by_server "$(dirname "$dir")" && socket_path_fits "$dir"; then
        home=$dir
        rm -f "$dir/elsewhere"
    else
        home=$(outside_home)
        mkdir -p "$dir"
        echo "$home" >"$dir/elsewhere"
    fi
}

# /var/tmp is open to all: a folder that somebody else made under our name must not be used.
claim_home() {
    if mkdir -m 0700 "$home" 2>/dev/null; then
        chown "$account" "$home"
    elif [ "$home" = "$dir" ] && [ -z "$(ls -A "$home")" ]; then
        chown "$account" "$home" && chmod 0700 "$home"
    fi
    # stat does not follow a link
    [ "$(stat -c '%F %U %a' "$home")" = "directory $account 700" ] ||
        die "$home is not a folder of $account's alone" \
            "It should be owned by $account with mode 0700. Remove it, or run this as the account that made it."
}

recall_settings() {
    local remembered=(ragstone 54329)
    [ ! -r "$home/settings" ] || mapfile -t remembered <"$home/settings"
    : "${database:=${remembered[0]}}" "${port:=${remembered[1]}}"
    [ ${#sets[@]} -gt 0 ] || sets=("${remembered[@]:2}")
}

# --- the server ----------------------------------------------------------------------------

find_server() {
    pg_config=$("$tools/deps.sh" pg_config)
    [ -n "$pg_config" ] || die "no PostgreSQL server is installed" "Run 'make deps' first."
    bin=$("$pg_config" --bindir)
}

postmaster() { head -n 1 "$home/data/postmaster.pid"; }

# A process number may have been given to another process since: ask what it works on.
running() {
    [ -r "$home/data/postmaster.pid" ] || return 1
    [ "$(readlink "/proc/$(postmaster)/cwd" 2>/dev/null)" = "$(readlink -f "$home/data")" ]
}

# The running server's program or one of its libraries was replaced on disk, as updates of packages do.
# Libraries that a session loads from now on may not fit the program that runs.
outdated() {
    local process
    process=/proc/$(postmaster)
    readlink "$process/exe" >/dev/null 2>&1 || return 1
    [ ! "$process/exe" -ef "$bin/postgres" ] ||
        grep -qE '\.so[.0-9]* \(deleted\)$' "$process/maps" 2>/dev/null
}

make_data() {
    echo "ragstone: making a private cluster in $home" >&2
    as_server mkdir -p "$home/socket"
    as_server "$bin/initdb" --pgdata="$home/data.new" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=reject --no-sync >"$scratch" 2>&1 ||
        { cat "$scratch" >&2; die "initdb failed"; }
    as_server sh -c "echo \"include_if_exists = 'ragstone.conf'\" >>'$home/data.new/postgresql.conf'"
    as_server mv "$home/data.new" "$home/data"
}

settings() {
    cat <<CONF
listen_addresses = ''
port = $port
unix_socket_directories = '$home/socket'
shared_preload_libraries = 'pg_cron'
cron.database_name = '$database'
cron.use_background_workers = on
max_worker_processes = 24
max_connections = 250
shared_buffers = 256MB
maintenance_work_mem = 256MB
work_mem = 16MB
effective_cache_size = 1GB
wal_compression = on
log_line_prefix = '%m [%p] %q%u@%d '
CONF
    local setting
    for setting in "${sets[@]}"; do echo "${setting%%=*} = '${setting#*=}'"; done
}

remember_settings() {
    printf '%s\n' "$database" "$port" "${sets[@]}" | as_server tee "$home/settings" >/dev/null
}

launch() {
    as_server "$bin/pg_ctl" start --pgdata="$home/data" --log="$home/log" --wait --timeout=60 --silent \
        >"$scratch" 2>&1 9>&-
}

start_server() {
    local log_size tail
    as_server rm -f "$home/data/postmaster.pid" "$home/socket/.s.PGSQL.$port" "$home/socket/.s.PGSQL.$port.lock"
    for _ in $(seq 1 30); do
        log_size=$(stat -c %s "$home/log" 2>/dev/null || echo 0)
        launch && return
        tail=$(tail -c "+$((log_size + 1))" "$home/log" 2>/dev/null || true)
        # The children of a killed postmaster take a moment to notice.
        case $tail in *"shared memory block"*) sleep 1 ;; *) break ;; esac
    done
    die "PostgreSQL did not start; the end of $home/log:" \
        "$(printf '%s' "$tail" | tail -n 20)" "$(<"$scratch")"
}

connect() { PGHOST=$home/socket PGPORT=$port PGUSER=postgres PGDATABASE=$database "$@"; }

make_database() {
    local exists
    exists=$(connect "$bin/psql" -XAtqd postgres -v name="$database" \
        <<<"select 1 from pg_catalog.pg_database where datname = :'name'")
    [ -n "$exists" ] || connect "$bin/createdb" "$database"
}

# --- commands ------------------------------------------------------------------------------

cmd_start() {
    find_server
    choose_home
    claim_home
    recall_settings
    exec 9>"$home/lock"
    flock 9
    if running; then
        outdated || return 0
        echo "ragstone: restarting the private cluster, as PostgreSQL was updated since it started" >&2
        cmd_stop
    fi
    [ -e "$home/data" ] || make_data
    [ "$(<"$home/data/PG_VERSION")" = "$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')" ] ||
        die "$home was made by PostgreSQL $(<"$home/data/PG_VERSION"), this is $("$pg_config" --version)" \
            "Choose the server with PG_CONFIG=…, or delete the cluster: tools/cluster.sh destroy"
    settings | as_server tee "$home/data/ragstone.conf" >/dev/null
    start_server
    remember_settings
    make_database
}

cmd_stop() {
    if ! running; then return; fi
    find_server
    as_server "$bin/pg_ctl" stop --pgdata="$home/data" --mode=fast --wait --timeout=60 --silent 2>"$scratch" ||
        as_server "$bin/pg_ctl" stop --pgdata="$home/data" --mode=immediate --wait --silent
}

cmd_env() {
    printf 'export PGHOST=%q PGPORT=%q PGUSER=postgres PGDATABASE=%q\n' "$home/socket" "$port" "$database"
}

cmd_psql() {
    running || die "the private cluster does not run" "Start it with 'make cluster'."
    find_server
    if outdated; then (cmd_start); fi
    rm -f "$scratch"
    connect exec "$bin/psql" "$@"
}

cmd_destroy() {
    cmd_stop
    rm -rf "$home" "$dir"
}

# --- the command line ----------------------------------------------------------------------

command=${1:-}
[ $# -eq 0 ] || shift
dir=$(dirname "$tools")/.cluster database="" port="" sets=()
while [ $# -gt 0 ]; do
    case $1 in
        --dir) dir=$2 ;;
        --database) database=$2 ;;
        --port) port=$2 ;;
        --set) sets+=("$2") ;;
        --) shift; break ;;
        *) die "unknown option: $1" "$(sed -nE '2,/^set /s/^# ?//p' "$0")" ;;
    esac
    shift 2 || die "$1 needs a value"
done
dir=$(realpath -m "$dir")
account=$(server_account)
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
find_home
case $command in
    start) cmd_start ;;
    stop) cmd_stop ;;
    status) running ;;
    env) recall_settings && cmd_env ;;
    psql) recall_settings && cmd_psql "$@" ;;
    home) echo "$home" ;;
    destroy) cmd_destroy ;;
    *) die "usage: tools/cluster.sh start|stop|status|env|psql|home|destroy [options]" ;;
esac
