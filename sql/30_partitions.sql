-- Partitions of rag.document_chunks, one for each pipeline, and the statements that make their indexes.

create or replace function rag._vector_schema() returns name
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (
    select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector');
end
$plpgsql$;
comment on function rag._vector_schema() is 'where pgvector''s types and operators are';

create or replace function rag._partition(pipeline_id integer) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select 'document_chunks_' || pipeline_id $sql$;
comment on function rag._partition(integer) is 'name of a pipeline''s partition of rag.document_chunks';

create or replace function rag._ensure_partition(pipeline_id integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _name     text := rag._partition(_ensure_partition.pipeline_id);
  _pipeline rag.pipelines;
  _model    rag.models;
begin
  select * into strict _pipeline from rag.pipelines p where p.pipeline_id = _ensure_partition.pipeline_id;
  -- First of all: where only the schema of a dump was restored, the partition is there and this is not.
  insert into rag._pipeline_statistics (pipeline_id, average_length)
  -- Until there is a corpus to count: English text has a lexeme in about 11 characters, 3 tokens.
  values (_pipeline.pipeline_id, _pipeline.chunk_size / case _pipeline.chunk_unit when 'characters' then 11.0 else 3.0 end)
  on conflict on constraint _pipeline_statistics_pkey do nothing;
  if to_regclass(format('rag.%I', _name)) is not null then
    return;
  end if;
  select * into strict _model from rag.models m where m.name = _pipeline.model;

  -- Made apart and then attached, which no search and no worker has to wait for.
  execute format('create table rag.%I (like rag.document_chunks including defaults including storage)', _name);
  execute format('alter table rag.%I add constraint embedding_has_dimension check (%I.vector_dims(embedding) = %s)',
                 _name, rag._vector_schema(), _model.dimension);
  -- A search reads the vectors of some hundred candidates: kept in the row where that leaves room.
  if _model.dimension <= 1024 then
    execute format('alter table rag.%I alter column embedding set storage plain', _name);
  end if;
  execute format('alter table rag.%I add primary key (chunk_id)', _name);
  execute format('alter table rag.%I add unique (source_id, document_id, chunk_index)', _name);
  execute format('create index %I on rag.%I using gin (content_tsv rag.tsvector_ops)', _name || '_content_tsv_idx', _name);
  execute format('create index %I on rag.%I using gin (tags)', _name || '_tags_idx', _name);
  execute format('create index %I on rag.%I (tenant_id) where tenant_id is not null', _name || '_tenant_id_idx', _name);

  if not _pipeline.index_deferred then
    perform rag._create_vector_index(_pipeline.pipeline_id);
  end if;

  execute format('alter table rag.document_chunks attach partition rag.%I for values in (%s)', _name, _pipeline.pipeline_id);

  if (select c.relrowsecurity from pg_class c where c.oid = 'rag.document_chunks'::regclass) then
    perform rag._isolate(i.relation, i.condition) from rag._isolated_relations() i where i.relation = to_regclass(format('rag.%I', _name));
  end if;
end
$plpgsql$;
comment on function rag._ensure_partition(integer) is
  'makes a pipeline''s partition and indexes where they are missing; not in the extension''s script, so that pg_dump takes them';
