-- Pipelines and their partitions.

create or replace function rag._vector_schema() returns name
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'
$sql$;
comment on function rag._vector_schema() is 'where pgvector''s types and operators are';

create or replace function rag._partition(pipeline_id integer) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select 'document_chunks_' || pipeline_id $sql$;
comment on function rag._partition(integer) is 'name of a pipeline''s partition of rag.document_chunks';

create or replace function rag._indexed_vector(pipeline_id integer, expression text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The planner uses the vector index only for the very expression it was made on.
  select format('(%s::%I.%s(%s))', expression, rag._vector_schema(),
                case p.quantization when 'half' then 'halfvec' else 'vector' end, m.dimension)
  from rag.pipelines p join rag.models m on m.name = p.model
  where p.pipeline_id = _indexed_vector.pipeline_id
$sql$;
comment on function rag._indexed_vector(integer, text) is 'the expression that a pipeline''s vector index is on, applied to a column or parameter';

create or replace function rag._ensure_partition(pipeline_id integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _name     text := rag._partition(_ensure_partition.pipeline_id);
  _pipeline rag.pipelines;
  _model    rag.models;
  _options  jsonb;
begin
  if to_regclass(format('rag.%I', _name)) is not null then
    return;
  end if;
  select * into strict _pipeline from rag.pipelines p where p.pipeline_id = _ensure_partition.pipeline_id;
  select * into strict _model from rag.models m where m.name = _pipeline.model;

  execute format('create table rag.%I partition of rag.document_chunks for values in (%s)', _name, _pipeline.pipeline_id);
  execute format('alter table rag.%I add constraint embedding_has_dimension check (%I.vector_dims(embedding) = %s)',
                 _name, rag._vector_schema(), _model.dimension);
  -- A search reads the vectors of some hundred candidates: kept in the row where that leaves room.
  if _model.dimension <= 1024 then
    execute format('alter table rag.%I alter column embedding set storage plain', _name);
  end if;
  execute format('alter table rag.%I add primary key (chunk_id)', _name);
  execute format('alter table rag.%I add unique (source_id, document_id, chunk_index)', _name);
  execute format('create index %I on rag.%I using gin (content_tsv)', _name || '_content_tsv_idx', _name);
  execute format('create index %I on rag.%I using gin (tags)', _name || '_tags_idx', _name);
  execute format('create index %I on rag.%I (tenant_id) where tenant_id is not null', _name || '_tenant_id_idx', _name);

  if _pipeline.index_method <> 'none' then
    _options := case _pipeline.index_method
      when 'hnsw' then jsonb_build_object('m', 16, 'ef_construction', 64)
      else jsonb_build_object('lists', 100)
    end || _pipeline.index_options;
    execute format('create index %I on rag.%I using %I (%s %I.%I) with (%s)',
      _name || '_embedding_idx', _name, _pipeline.index_method,
      rag._indexed_vector(_pipeline.pipeline_id, 'embedding'),
      rag._vector_schema(), case _pipeline.quantization when 'half' then 'halfvec_cosine_ops' else 'vector_cosine_ops' end,
      -- What is for searches the index is not made with.
      (select string_agg(format('%I = %L', key, value), ', ') from jsonb_each_text(_options) where key not in ('ef_search', 'probes')));
  end if;

  if (select c.relrowsecurity from pg_class c where c.oid = 'rag.document_chunks'::regclass) then
    perform rag._isolate(i.relation, i.condition) from rag._isolated_relations() i where i.relation = to_regclass(format('rag.%I', _name));
  end if;

  insert into rag._pipeline_statistics (pipeline_id, average_length)
  -- Until there is a corpus to count: English text has a lexeme in about 11 characters, 3 tokens.
  values (_pipeline.pipeline_id, _pipeline.chunk_size / case _pipeline.chunk_unit when 'characters' then 11.0 else 3.0 end)
  on conflict on constraint _pipeline_statistics_pkey do nothing;
end
$plpgsql$;
comment on function rag._ensure_partition(integer) is 'makes a pipeline''s partition and indexes where they are missing; not in the extension''s script, so that pg_dump takes them';

create or replace function rag._restore_pipeline() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- pg_restore loads the dumped pipelines into a fresh extension, which has made its own default: the
  -- dumped ones win. Nothing else gives an id in use, or inserts an active pipeline.
  delete from rag.pipelines p
   where p.pipeline_id = new.pipeline_id
      or (p.state = 'active' and new.state = 'active' and p.activated_at = p.created_at);
  return new;
end
$plpgsql$;

create or replace trigger restore_pipeline before insert on rag.pipelines
  for each row execute function rag._restore_pipeline();

insert into rag.pipelines (name, model, state, activated_at)
select 'default', 'all-MiniLM-L6-v2', 'active', now()
where not exists (select from rag.pipelines);
