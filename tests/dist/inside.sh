#!/usr/bin/env bash
# Runs in the clean Debian, as a DBA who has the packages and the README: install without a network,
# search, upgrade, purge.
set -euo pipefail

started=$(date +%s%N)
step() {
    local now
    now=$(date +%s%N)
    printf 'test-dist: %5.1f s  %s\n' "$(((now - started) / 100000000))e-1" "$1"
    started=$now
}

die() {
    printf 'test-dist: error: %s\n' "$*" >&2
    exit 1
}

sql() { (cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d shop "$@"); }

expect() {
    local found
    found=$(sql -c "$2")
    [ "$found" = "$1" ] || die "expected $1, found $found: $2"
}

files_of_postgresql() { find /usr/lib/postgresql /usr/share/postgresql /usr/share/doc -print | sort; }

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root)

cd /root/dist
for package in ./*.deb; do
    stray=$(dpkg-deb --fsys-tarfile "$package" | tar -t | grep -vE '^\./(usr/.*)?$' || true)
    [ -z "$stray" ] || die "$package has files outside /usr: $stray"
done

# The folder that is carried to a server without a network: what is depended on, and the packages.
"${apt[@]}" -o Dir::Cache::archives=/root/dist --download-only install ./*.deb >/dev/null
rm -rf partial lock
step "download what the packages depend on: $(du -shc ./*.deb | tail -1 | cut -f1) in the folder"

# All but the package itself first, so that its purge can be told from theirs.
dependencies=()
for package in ./*.deb; do
    case $package in ./postgresql-*-ragstone_*) own=$package ;; *) dependencies+=("$package") ;; esac
done
before=$(du -sm /usr | cut -f1)
unshare --net "${apt[@]}" install "${dependencies[@]}" >/dev/null 2>/tmp/apt || { cat /tmp/apt >&2; exit 1; }
step "install PostgreSQL, PL/Python, pg_cron and pgvector, without a network: $(($(du -sm /usr | cut -f1) - before)) MB"
files_of_postgresql >/tmp/before
before=$(du -sm /usr | cut -f1)
unshare --net "${apt[@]}" install "$own" >/dev/null 2>/tmp/apt || { cat /tmp/apt >&2; exit 1; }
step "install ragstone, without a network: $(($(du -sm /usr | cut -f1) - before)) MB"
dpkg --verify "$(dpkg-deb -f "$own" Package)" || die "files differ from those of the package"

# As README.md tells it.
read -r major cluster _ < <(pg_lsclusters -h)
cat >>"/etc/postgresql/$major/$cluster/postgresql.conf" <<'CONF'
shared_preload_libraries = 'pg_cron'
cron.database_name = 'shop'
cron.use_background_workers = on
CONF
pg_ctlcluster "$major" "$cluster" start
(cd / && runuser -u postgres -- createdb shop)
step "start a cluster"
sql -c 'create extension ragstone cascade' 2>/dev/null
step "create extension"
mkdir -p /srv/documents
cp "/usr/share/doc/$(dpkg-deb -f "$own" Package)/examples/documents/collection-care-manual.pdf" /srv/documents/handbook.pdf
sql <<'SQL' >/dev/null
select rag.set('document_root', '/srv/documents');
create table files (id integer generated always as identity primary key, path text not null);
select rag.attach_source('files', path_column => 'path');
insert into files (path) values ('handbook.pdf');
select rag.start_workers(1);
create role app login;
select rag.grant_usage('app', level => 'search');
SQL
for _ in $(seq 180); do
    [ "$(sql -c "select status from rag.documents")" = pending ] || break
    sleep 0.5
done
step "a worker of pg_cron takes a document in (they begin at the full minute)"
expect 2 "set role app; select page_number from rag.search_documents('How humid may the paper store be?', match_count => 1)"
step "first search of a role with level search"
expect '' "select \"check\", detail, hint from rag.check() where not ok and \"check\" not in ('pgvector', 'cpu', 'memory')"
expect t "select ok from rag.check() where \"check\" = 'prepacked'"
sql -c "select '  ' || coalesce(ok::text, 'null') || '  ' || \"check\" || ': ' || detail from rag.check() where ok is not true"
step "rag.check()"

# An upgrade keeps the version that databases still use. There is one release only: it poses as the next.
next=/tmp/next
dpkg-deb -R "$own" "$next"
home=$(dirname "$(find "$next" -type d -path '*/ragstone/0.*' -prune)")
version=$(basename "$home"/0.*)
mv "$home/$version" "$home/9.0.0"
sed -i "s/$version/9.0.0/" "$next"/DEBIAN/{control,postinst,prerm,postrm,md5sums}
dpkg-deb -Znone --root-owner-group --build "$next" /tmp/next.deb >/dev/null
dpkg -i /tmp/next.deb >/dev/null
libdir=${home#"$next"}
for kept in 9.0.0 "$version"; do
    [ -e "$libdir/$kept/ragstone" ] || die "an upgrade must keep both versions: $kept is gone"
done
expect 2 "select page_number from rag.search_documents('How humid may the paper store be?', match_count => 1)"
step "upgrade: the version in use stays"

sql -c 'drop extension ragstone cascade' 2>/dev/null
"${apt[@]}" purge "$(dpkg-deb -f "$own" Package)" >/dev/null
files_of_postgresql | diff /tmp/before - || die "purge left something, or took too much"
step "purge leaves nothing"
pg_ctlcluster -m immediate "$major" "$cluster" stop
