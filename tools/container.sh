#!/bin/sh
# Entry point of the container: makes the cluster at the first start, with ragstone in DATABASE, and
# runs it. Reads PGDATA, DATABASE, WORKERS and, at the first start, POSTGRES_PASSWORD.
set -eu

for bin in /usr/lib/postgresql/*/bin; do :; done
documents=${DOCUMENTS:-/srv/documents}

make_cluster() {
    : "${POSTGRES_PASSWORD:?set it for the first start}"
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
    "$bin/initdb" --pgdata="$PGDATA.new" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256 --pwfile="$password" >/dev/null
    rm "$password"
    cat >>"$PGDATA.new/postgresql.conf" <<CONF
listen_addresses = '*'
shared_preload_libraries = 'pg_cron'
cron.database_name = '$DATABASE'
cron.use_background_workers = on
CONF
    echo 'host all all all scram-sha-256' >>"$PGDATA.new/pg_hba.conf"
    "$bin/pg_ctl" start --pgdata="$PGDATA.new" --wait --silent --log="$PGDATA.new/first-start.log" \
        --options="-c listen_addresses='' -c unix_socket_directories='$PGDATA.new'"
    run="$bin/psql -XAtq -v ON_ERROR_STOP=1 -h $PGDATA.new -U postgres"
    [ "$DATABASE" = postgres ] || "$bin/createdb" -h "$PGDATA.new" -U postgres "$DATABASE"
    $run -d "$DATABASE" -v documents="$documents" -v workers="$WORKERS" >/dev/null <<'SQL'
set client_min_messages = warning;
create extension ragstone cascade;
select rag.set('document_root', :'documents');
select rag.start_workers(:workers);
SQL
    "$bin/pg_ctl" stop --pgdata="$PGDATA.new" --wait --silent
    # The volume itself cannot be renamed: its content is moved, PG_VERSION last.
    for entry in "$PGDATA.new"/*; do
        [ "${entry##*/}" = PG_VERSION ] || mv "$entry" "$PGDATA/"
    done
    mv "$PGDATA.new/PG_VERSION" "$PGDATA/"
    rmdir "$PGDATA.new"
    chmod 0700 "$PGDATA"
}

if [ ! -e "$PGDATA/PG_VERSION" ]; then
    rm -rf "$PGDATA.new" "${PGDATA:?}"/*
    make_cluster
fi
exec "$bin/postgres" -D "$PGDATA" "$@"
