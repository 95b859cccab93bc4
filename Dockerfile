# PostgreSQL with ragstone, from Debian's packages. The list is that of `tools/deps.sh packages 17`,
# which a test compares. `make test-image` carries out these lines without Docker.

FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates git make \
        postgresql-17 \
        postgresql-plpython3-17 \
        postgresql-17-cron \
        postgresql-17-pgvector \
        python3-venv
COPY . /src
RUN make -C /src dist

FROM debian:trixie-slim
COPY --from=build /src/build/dist/*.deb /tmp/packages/
# Brings the server and all else as dependencies. The cluster is made by the entry point.
RUN mkdir -p /etc/postgresql-common/createcluster.d && \
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/none.conf && \
    apt-get update && apt-get install -y --no-install-recommends /tmp/packages/*.deb && \
    rm -rf /tmp/packages /var/lib/apt/lists/*
COPY tools/container.sh /usr/local/bin/ragstone-server
RUN mkdir -p /srv/documents /var/lib/postgresql/data && chown postgres: /var/lib/postgresql/data
USER postgres
ENV PGDATA=/var/lib/postgresql/data DATABASE=ragstone WORKERS=1
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
CMD ["ragstone-server"]
