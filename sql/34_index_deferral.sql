-- The vector index after the data: a first load is faster without it, and so is building it at once.

create or replace function rag.defer_index(pipeline text default 'active') returns void
  language plpgsql
  -- SECURITY DEFINER: indexes belong to ragstone's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._pipeline(defer_index.pipeline);
begin
  if _pipeline.index_method = 'none' then
    raise exception 'pipeline "%" has no vector index', _pipeline.name
      using errcode = 'object_not_in_prerequisite_state',
            hint    = 'There is nothing to defer: its index_method is none.';
  end if;
  if to_regclass(format('rag.%I', rag._vector_index(_pipeline.pipeline_id))) is not null then
    execute format('drop index rag.%I', rag._vector_index(_pipeline.pipeline_id));
  end if;
  update rag.pipelines p set index_deferred = true where p.pipeline_id = _pipeline.pipeline_id;
end
$plpgsql$;
comment on function rag.defer_index(text) is 'drops a pipeline''s vector index for the time of a large load; workers build it once nothing is left to do, or rag.build_index() does. Searches by meaning read all vectors until then. Waits for searches that are under way. Raises 42704 for an unknown pipeline, 55000 for one without index';

create or replace function rag._build_memory(bytes bigint) returns text
  language plpython3u
as $python$
@boot@
from ragstone.memory import available_bytes
quarter = (available_bytes() or 0) // 4
wanted = min(bytes, max(quarter, 64 << 20))
return f"{max(wanted >> 10, 1024)}kB"
$python$;
comment on function rag._build_memory(bigint) is 'maintenance_work_mem for an index of that size: no more than a quarter of what the machine has available';

create or replace function rag._build_index(pipeline_id integer, parallel_workers integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _rows      bigint;
  _dimension integer;
  _memory    text;
begin
  select m.dimension into strict _dimension from rag.pipelines p join rag.models m on m.name = p.model where p.pipeline_id = _build_index.pipeline_id;
  perform rag._ensure_partition(_build_index.pipeline_id);
  -- Workers that store wait for the index; searches do not.
  execute format('lock table rag.%I in share mode', rag._partition(_build_index.pipeline_id));
  execute format('select count(*) from rag.%I', rag._partition(_build_index.pipeline_id)) into _rows;
  -- The graph of HNSW in memory: a vector, some 40 neighbours and their distances.
  _memory := rag._build_memory(greatest((_rows * (4 * _dimension + 700) * 1.1)::bigint, pg_size_bytes(current_setting('maintenance_work_mem'))));
  perform set_config('maintenance_work_mem', _memory, true);
  perform set_config('max_parallel_maintenance_workers', (
    case when rag._version_number((select e.extversion from pg_extension e where e.extname = 'vector')) < '{0,8,2}' then 0
         else coalesce(_build_index.parallel_workers, current_setting('max_parallel_maintenance_workers')::integer) end)::text, true);
  perform rag._create_vector_index(_build_index.pipeline_id);
  update rag.pipelines p set index_deferred = false where p.pipeline_id = _build_index.pipeline_id;
end
$plpgsql$;
comment on function rag._build_index(integer, integer) is 'builds a pipeline''s vector index, with memory for all of it where the machine has that; in parallel from pgvector 0.8.2, before which a parallel build can overflow';

create or replace function rag.build_index(pipeline text default 'active', parallel_workers integer default null) returns interval
  language plpgsql
  -- SECURITY DEFINER: as for rag.defer_index().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
  _started  timestamptz := clock_timestamp();
begin
  select * into _pipeline from rag.pipelines p
   where p.name = build_index.pipeline or (build_index.pipeline = 'active' and p.state = 'active')
     for no key update;
  if not found then
    raise exception 'there is no pipeline "%"', coalesce(build_index.pipeline, 'null')
      using errcode = 'undefined_object',
            hint    = 'Pipelines are listed by: select name, state from rag.pipelines;';
  end if;
  perform rag._build_index(_pipeline.pipeline_id, build_index.parallel_workers);
  return clock_timestamp() - _started;
end
$plpgsql$;
comment on function rag.build_index(text, integer) is 'builds a pipeline''s vector index after rag.defer_index(), and returns how long it took; how far it is: rag.index_progress. parallel_workers: as the server has it in max_parallel_maintenance_workers; none below pgvector 0.8.2. Workers wait meanwhile, searches do not. Raises 42704 for an unknown pipeline';

create or replace function rag._build_deferred_index() returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
  _is_empty boolean;
begin
  for _pipeline in
    select * from rag.pipelines p
     where p.index_deferred and p.state in ('active', 'building') and to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) is not null
       -- The load is over: nothing waits, runs, or is still to be turned into jobs.
       and not exists (select from rag._changes)
       and not exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id)
       and not exists (select from rag.ingestion_queue q where q.pipeline_id = p.pipeline_id and q.status <> 'dead')
     order by p.pipeline_id
       for no key update skip locked
  loop
    execute format('select not exists (select from rag.%I)', rag._partition(_pipeline.pipeline_id)) into _is_empty;
    -- It has not begun yet.
    continue when _is_empty;
    perform rag._build_index(_pipeline.pipeline_id, null);
    return true;
  end loop;
  return false;
end
$plpgsql$;
comment on function rag._build_deferred_index() is 'builds one vector index that was deferred and whose load is over; false where there is none';

create or replace function rag._index_builds()
  returns table (name text, phase text, percent numeric, running_for interval, time_left interval)
  language sql stable
  -- SECURITY DEFINER: what another session is doing is shown to the privileged alone.
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$
  select p.name, b.phase, round(100 * b.share::numeric, 1), date_trunc('second', b.running_for),
         case when b.share > 0 then date_trunc('second', b.running_for * (1 / b.share - 1)) end
    from rag.pipelines p
    join (select c.relid, c.phase, clock_timestamp() - a.query_start as running_for,
                 coalesce(c.blocks_done::float / nullif(c.blocks_total, 0), c.tuples_done::float / nullif(c.tuples_total, 0)) as share
            from pg_stat_progress_create_index c join pg_stat_activity a on a.pid = c.pid
           where c.datname = current_database()) b
      on b.relid = to_regclass(format('rag.%I', rag._partition(p.pipeline_id)))
$sql$;
comment on function rag._index_builds() is 'what rag.index_progress shows';

create or replace view rag.index_progress with (security_invoker = true) as
  select * from rag._index_builds();
comment on view rag.index_progress is 'vector indexes that are being built right now, and how long they will take at the speed so far';
