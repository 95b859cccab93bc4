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

create or replace function rag._indexed_vector(pipeline rag.pipelines, expression text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The planner uses the vector index only for the very expression it was made on.
  select case pipeline.quantization
           when 'binary' then format('(%2$I.binary_quantize(%1$s)::bit(%3$s))', expression, rag._vector_schema(), m.dimension)
           when 'half'   then format('(%s::%I.halfvec(%s))', expression, rag._vector_schema(), m.dimension)
           else               format('(%s::%I.vector(%s))', expression, rag._vector_schema(), m.dimension)
         end
  from rag.models m
  where m.name = pipeline.model
$sql$;
comment on function rag._indexed_vector(rag.pipelines, text) is
  'the expression that a pipeline''s vector index is on, applied to a column or parameter';

create or replace function rag._index_statement(pipeline rag.pipelines, name text, beside boolean default false) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select format('create index %s%I on rag.%I using %I (%s %I.%I) with (%s)',
    case when beside then 'concurrently if not exists ' else '' end, name, rag._partition(pipeline.pipeline_id), pipeline.index_method,
    rag._indexed_vector(pipeline, 'embedding'), rag._vector_schema(),
    case pipeline.quantization when 'binary' then 'bit_hamming_ops' when 'half' then 'halfvec_cosine_ops' else 'vector_cosine_ops' end,
    -- What is for searches the index is not made with.
    (select string_agg(format('%I = %L', o.key, o.value), ', ' order by o.key)
     from jsonb_each_text(case pipeline.index_method
                            when 'hnsw' then jsonb_build_object('m', 16, 'ef_construction', 64)
                            else jsonb_build_object('lists', 100)
                          end || pipeline.index_options) o
     where o.key not in ('ef_search', 'probes', 'oversampling')))
$sql$;
comment on function rag._index_statement(rag.pipelines, text, boolean) is
  'what makes the vector index of a pipeline, under that name; beside: while documents change';

create or replace function rag._vector_index(pipeline_id integer) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select rag._partition(pipeline_id) || '_embedding_idx' $sql$;
comment on function rag._vector_index(integer) is 'name of a pipeline''s vector index';

create or replace function rag._require_index_options(pipeline rag.pipelines) returns void
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _fault text;
begin
  _fault := case
    when pipeline.index_method not in ('hnsw', 'ivfflat', 'none') then format('there is no index method %s', quote_ident(pipeline.index_method))
    when pipeline.quantization not in ('none', 'half', 'binary') then format('there is no quantization %s', quote_ident(pipeline.quantization))
    when jsonb_typeof(pipeline.index_options) <> 'object' then 'index_options is no JSON object'
    else (
      select case when k.option is null then format('%s is no index option of %s', quote_ident(left(o.key, 40)), pipeline.index_method)
                  else format('%s is a whole number from %s to %s, not %s', k.option, k.least, k.most, left(o.value::text, 40)) end
      from jsonb_each(pipeline.index_options) o
      -- As pgvector has them.
      left join (values ('m', 'hnsw', 2, 100), ('ef_construction', 'hnsw', 4, 1000), ('ef_search', 'hnsw', 1, 1000),
                        ('lists', 'ivfflat', 1, 32768), ('probes', 'ivfflat', 1, 32768), ('oversampling', pipeline.index_method, 1, 1000))
                as k (option, method, least, most) on k.option = o.key and k.method = pipeline.index_method
      where k.option is null or o.value::text !~ '^[0-9]{1,5}$' or o.value::text::integer not between k.least and k.most
      order by o.key limit 1)
  end;
  if _fault is null and pipeline.index_method = 'hnsw'
     and coalesce((pipeline.index_options ->> 'ef_construction')::integer, 64) < 2 * coalesce((pipeline.index_options ->> 'm')::integer, 16) then
    _fault := format('ef_construction is at least twice m, so %s or more, not %s', 2 * coalesce((pipeline.index_options ->> 'm')::integer, 16),
                     coalesce(pipeline.index_options ->> 'ef_construction', '64, which it is where it is left out'));
  end if;
  if _fault is not null then
    raise exception '%', _fault
      using errcode = 'invalid_parameter_value',
            hint    = 'What each can be is said by: \d+ rag.pipelines; for example: index_method => ''hnsw'', index_options => ''{"m": 24, "ef_construction": 100}''.';
  end if;
end
$plpgsql$;
comment on function rag._require_index_options(rag.pipelines) is
  'raises 22023 for an index method, quantization or index options that cannot be, or with which no search could work';

create or replace function rag._create_vector_index(pipeline_id integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
begin
  select * into strict _pipeline from rag.pipelines p where p.pipeline_id = _create_vector_index.pipeline_id;
  if _pipeline.index_method <> 'none' and to_regclass(format('rag.%I', rag._vector_index(_pipeline.pipeline_id))) is null then
    execute rag._index_statement(_pipeline, rag._vector_index(_pipeline.pipeline_id));
  end if;
end
$plpgsql$;
comment on function rag._create_vector_index(integer) is 'makes a pipeline''s vector index where it is missing';

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
