"""What is configured: settings, models and pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ragstone.db.connection import Connection
from ragstone.db.rows import Pipeline
from ragstone.models.port import ModelSpec

_MODELS = (
    "select m.name, m.provider, m.location, m.dimension, m.max_tokens, m.passage_prefix,"
    " pg_catalog.encode(m.sha256, 'hex') as sha256, m.options::text as options from rag.models m"
)


class Catalog:
    """Reads only; each method raises what the database raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def settings(self, tenant_id: int | None) -> dict[str, str | None]:
        """All settings as they are for a tenant, or where that is None for everybody."""
        rows = self._connection.rows("select * from rag._settings_of($1)", ["int8"], tenant_id)
        return {row["name"]: row["value"] for row in rows}

    def model(self, name: str) -> ModelSpec:
        (model,) = self._models("m.name operator(pg_catalog.=) $1", ["text"], name)
        return model

    def models_in_use(self) -> list[ModelSpec]:
        """The models of active and building pipelines."""
        return self._models(
            "m.name operator(pg_catalog.=) any (select p.model from rag.pipelines p"
            " where p.state operator(pg_catalog.=) any ('{active,building}'))"
        )

    def _models(self, which: str, types: Sequence[str] = (), *values: object) -> list[ModelSpec]:
        rows = self._connection.rows(f"{_MODELS} where {which} order by m.name", types, *values)
        return [ModelSpec(**{**row, "options": json.loads(row["options"])}) for row in rows]

    def languages_of_ocr(self) -> list[str]:
        """In which languages active and building pipelines have pictures recognised."""
        rows = self._connection.rows(
            "select distinct ocr from rag.pipelines where ocr operator(pg_catalog.<>) 'off'"
            " and state operator(pg_catalog.=) any ('{active,building}') order by 1"
        )
        return [row["ocr"] for row in rows]

    def scheduled_workers(self) -> int:
        return self._connection.value("rag._scheduled_workers()")

    def pipeline(self, pipeline_id: int) -> Pipeline:
        (row,) = self._connection.rows(
            "select model, chunk_strategy, chunk_size, chunk_overlap, chunk_unit, embed_template,"
            " ocr from rag.pipelines where pipeline_id operator(pg_catalog.=) $1",
            ["int4"],
            pipeline_id,
        )
        model = self.model(row["model"])
        # Imported here: the first search of a session waits, and has no use for it.
        from ragstone.reading.chunk import ChunkSpec

        spec = ChunkSpec(
            strategy=row["chunk_strategy"],
            size=row["chunk_size"],
            overlap=row["chunk_overlap"],
            unit=row["chunk_unit"],
            max_tokens=model.max_tokens,
            template=model.passage_prefix + row["embed_template"],
        )
        return Pipeline(pipeline_id, model, spec, row["ocr"])

    def pipeline_named(self, name: str) -> Pipeline | None:
        """The pipeline of that name, or the one in use for "active"; None where there is none."""
        rows = self._connection.rows(
            "select pipeline_id from rag.pipelines where name operator(pg_catalog.=) $1"
            " or $1 operator(pg_catalog.=) 'active' and state operator(pg_catalog.=) 'active'",
            ["text"],
            name,
        )
        return self.pipeline(rows[0]["pipeline_id"]) if rows else None

    def seconds(self, interval: str) -> float:
        """The length of an interval in PostgreSQL's notation."""
        return float(self._connection.value("extract(epoch from $1)", ["interval"], interval))
