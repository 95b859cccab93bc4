#!/usr/bin/env bash
# Runs in a clean Debian 13: installs ragstone into its PostgreSQL 17 and into the 15 of Debian 12, which
# has another Python, and takes a database from one to the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sed 's/trixie/bookworm/g' /etc/apt/sources.list >/etc/apt/sources.list.d/bookworm.list
# Python 3.11 has a module venv only where it is Debian's python3.
cat >/etc/apt/preferences.d/bookworm <<'PIN'
Package: python3 python3-minimal libpython3-stdlib
Pin: release n=bookworm
Pin-Priority: 990
PIN
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install postgresql-15 postgresql-plpython3-15 \
    postgresql-15-cron python3.11-venv postgresql-17 postgresql-plpython3-17 postgresql-17-cron python3.13-venv >/dev/null

for server in 15 17; do
    export PG_CONFIG=/usr/lib/postgresql/$server/bin/pg_config
    make deps installed
done
make venv-dev
.venv/bin/python -m pytest tests/upgrade/test_pg_upgrade.py
