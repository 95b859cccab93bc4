# `make` alone lists the targets.

PG_CONFIG ?= $(shell tools/deps.sh pg_config)
VENV      ?= .venv
SUDO      := $(if $(filter 0,$(shell id -u)),,sudo)
TESTS     ?=

# ONNX Runtime sends telemetry otherwise. The installed extension does not depend on this line.
export ORT_DISABLE_TELEMETRY := 1

# Asked when a recipe runs: `make deps` may only just have installed them.
PYTHON     = $(shell PG_CONFIG=$(PG_CONFIG) tools/deps.sh python)
PKGLIBDIR  = $(shell $(PG_CONFIG) --pkglibdir)
SHAREDIR   = $(shell $(PG_CONFIG) --sharedir)
CLUSTER    = PG_CONFIG=$(PG_CONFIG) tools/cluster.sh
PINNED     = requirements/server.txt requirements/build.txt requirements/model.txt
MODEL      = build/model/model.json

.DEFAULT_GOAL := help
.PHONY: help deps build install uninstall demo test chaos soak fuzz cluster stop psql env bench bench-search lint lock clean dist test-dist test-image test-debian13 test-debian-forky test-pg-upgrade freeze reference installed venv venv-dev

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

deps: ## install the server, PL/Python, pg_cron and pgvector where they are missing
	@tools/deps.sh

build: venv ## build the model and the SQL
	@tools/packages.sh folder "$(PYTHON)" build/site requirements/server.txt
	@$(MAKE) --silent --no-print-directory $(MODEL)
	@$(VENV)/bin/python tools/assemble.py build --model $(MODEL) --output build/extension

$(MODEL): tools/build_model.py $(PINNED)
	@echo "ragstone: building the model" >&2
	@said=$$($(VENV)/bin/python tools/build_model.py build --output build/model --keep-fp32 2>&1) || \
	    { echo "$$said" >&2; exit 1; }
	@touch $@

install: installed ## install the extension into the server (PG_CONFIG chooses which)
	@PG_CONFIG=$(PG_CONFIG) tools/deps.sh advice

installed: build
	@$(SUDO) $(PYTHON) tools/install.py install --pkglibdir $(PKGLIBDIR) --sharedir $(SHAREDIR)

uninstall: ## remove the extension from the server
	@test -n "$(PG_CONFIG)" || { echo "ragstone: error: no PostgreSQL server is installed" >&2; exit 1; }
	@$(SUDO) $(or $(PYTHON),python3) tools/install.py uninstall --pkglibdir $(PKGLIBDIR) --sharedir $(SHAREDIR)

dist: build ## make Debian packages, META.json and a source archive in build/dist
	@$(PYTHON) -B tools/dist.py --pg-config $(PG_CONFIG) --python $(PYTHON) --output build/dist

test-debian13: ## run all tests on a clean Debian 13, with PostgreSQL 17 (needs root and debootstrap)
	@tools/debian_root.sh /var/tmp/ragstone-debian13 trixie make test

test-debian-forky: ## run all tests on a clean Debian forky, with PostgreSQL 18 (needs root and debootstrap)
	@tools/debian_root.sh /var/tmp/ragstone-debian-forky forky make test

test-pg-upgrade: ## have pg_upgrade take a database from PostgreSQL 15 to 17, on a clean Debian (needs root and debootstrap)
	@tools/debian_root.sh /var/tmp/ragstone-pg-upgrade trixie tests/upgrade/two_servers.sh

test-dist: dist ## install the packages on a clean Debian, search, upgrade, purge (SUITE=trixie; needs root)
	@tests/dist/run.sh $(SUITE)

test-image: ## carry out Dockerfile in clean roots, without Docker, and search in the result (needs root and debootstrap)
	@$(PYTHON) -B tests/dist/image.py

demo: ## install all there is to install, take in the sample documents, ask three questions
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory venv-dev cluster
	@eval "$$($(CLUSTER) env)" && $(VENV)/bin/python examples/demo.py

test: ## run every test (TESTS=tests/unit for some)
	@WITH_OCR=yes $(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory lint installed
	@$(VENV)/bin/python -m pytest -n $$(nproc) $(TESTS)

chaos: installed venv-dev ## kill everything 200 times while rows change, then look for what is lost (EVENTS, SEED)
	@$(VENV)/bin/python -m tests.chaos --events $(or $(EVENTS),200) --seed $(or $(SEED),1)

soak: installed venv-dev ## half an hour of mixed traffic, then look for what has grown (MINUTES)
	@$(VENV)/bin/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

fuzz: venv-dev ## mutate valid documents and read them (SECONDS=60 SEED=…)
	@$(VENV)/bin/python tests/fuzz.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

cluster: installed ## start the private cluster, with the extension installed
	@$(CLUSTER) start

stop: ## stop the private cluster
	@$(CLUSTER) stop

psql: ## psql in the private cluster
	@$(CLUSTER) psql

env: ## print how to reach the private cluster: eval "$(make -s env)"
	@$(CLUSTER) env

bench: cluster venv-dev ## measure ingest, search and triggers (ARGS='quality --collection DIR')
	@eval "$$($(CLUSTER) env)" && PYTHONPATH=plpy_lib $(VENV)/bin/python -m bench $(ARGS)

# COLLECTIONS: folders in BEIR layout, each with its language where that is not English: dir dir:id
bench-search: cluster venv-dev ## measure search: quality (COLLECTIONS='DIR DIR:id'), latency, growth (CHUNKS)
	@for collection in $(COLLECTIONS); do \
	    language=$${collection#*:}; test "$$language" != "$$collection" || language=en; \
	    $(MAKE) --no-print-directory bench ARGS="quality --collection $${collection%:*} --language $$language" || exit 1; \
	done
	@$(MAKE) --no-print-directory bench ARGS=search
	@$(MAKE) --no-print-directory bench ARGS="scale --chunks $(or $(CHUNKS),10000 100000)"

freeze: build ## at a release: keep its install script, package and hashes for good
	@$(VENV)/bin/python tools/assemble.py freeze --model $(MODEL)

reference: installed venv-dev ## write docs/reference.md and the list of objects anew, from the catalog
	@RAGSTONE_REWRITE_GOLDEN=1 $(VENV)/bin/python -m pytest -q tests/contents/test_objects.py

lint: venv-dev ## check Python, SQL and shell code
	@$(VENV)/bin/ruff check --quiet .
	@found=$$(PYTHONPATH=plpy_lib $(VENV)/bin/lint-imports --no-cache) || { echo "$$found" >&2; exit 1; }
	@$(VENV)/bin/python tools/check_sql.py
	@! command -v shellcheck >/dev/null || shellcheck tools/*.sh tools/debian/* tests/dist/*.sh tests/upgrade/*.sh .ci/run

lock: ## pin requirements/*.in anew (UPGRADE=1 takes the newest)
	@tools/lock.sh "$(PYTHON)" $(if $(UPGRADE),--upgrade)

clean: ## delete the private cluster and everything that was built here
	@$(CLUSTER) destroy
	@rm -rf build $(VENV) $(VENV).lock .pytest_cache .ruff_cache

venv:
	@tools/packages.sh venv "$(PYTHON)" $(VENV) $(PINNED)

venv-dev:
	@tools/packages.sh venv "$(PYTHON)" $(VENV) $(PINNED) requirements/dev.txt
