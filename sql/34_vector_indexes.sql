-- Vector indexes: deferring one until after a first load, and rebuilding one while documents change.

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
comment on function rag.defer_index(text) is
  'drops a pipeline''s vector index for the time of a large load; workers build it once nothing is left to do, or rag.build_index() does.'
  ' Searches by meaning read all vectors until then. Waits for searches that are under way. Raises 42704 for an unknown pipeline, 55000'
  ' for one without index';

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
comment on function rag._build_index(integer, integer) is
  'builds a pipeline''s vector index, with memory for all of it where the machine has that; in parallel from pgvector 0.8.2, before which'
  ' a parallel build can overflow';

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
comment on function rag.build_index(text, integer) is
  'builds a pipeline''s vector index after rag.defer_index(), and returns how long it took; how far it is: rag.index_progress.'
  ' parallel_workers: as the server has it in max_parallel_maintenance_workers; none below pgvector 0.8.2. Workers wait meanwhile,'
  ' searches do not. Raises 42704 for an unknown pipeline';

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
comment on function rag._build_deferred_index() is
  'builds one vector index that was deferred and whose load is over; false where there is none';

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
-- A vector index made anew, or another in its place, while documents change and searches go on.
--
-- create index concurrently cannot be run by a function, nor by a procedure. So pg_cron runs it, in a
-- session of its own; or whoever calls does, by hand, where pg_cron lives in another database.

create or replace function rag._rebuild_job_name() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select format('ragstone index in %s', current_database()) $sql$;

create or replace function rag._pipeline_with_index(name text, index_method text, index_options jsonb, quantization text) returns rag.pipelines
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._searched_pipeline(name);
  _method   constant text := coalesce(_pipeline_with_index.index_method, _pipeline.index_method);
begin
  _pipeline.index_options := coalesce(_pipeline_with_index.index_options, case when _method = _pipeline.index_method then _pipeline.index_options else '{}' end);
  _pipeline.index_method := _method;
  _pipeline.quantization := coalesce(_pipeline_with_index.quantization, _pipeline.quantization);
  perform rag._require_index_options(_pipeline);
  return _pipeline;
end
$plpgsql$;
comment on function rag._pipeline_with_index(text, text, jsonb, text) is
  'a pipeline as it is with another vector index; what is null stays. Raises 42704 for an unknown name, 22023 for what cannot be';

create or replace function rag._rebuild_step(
    pipeline text, index_method text, index_options jsonb, quantization text,
    inout begun boolean, out done boolean, out notice text)
  -- Volatile: every query sees what is committed by then.
  language plpgsql volatile
  -- SECURITY DEFINER: indexes and pg_cron's jobs are those of ragstone's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _stored    constant rag.pipelines := rag._searched_pipeline(pipeline);
  _pipeline  constant rag.pipelines := rag._pipeline_with_index(pipeline, index_method, index_options, quantization);
  _index     constant text := rag._vector_index(_pipeline.pipeline_id);
  -- What it is made of is in its name: one left by a call that wanted another is not taken for ours.
  _statement text;
  _new       text;
  _left      record;
  _building  boolean;
  _valid     boolean;
  _failure   text;
begin
  done := false;
  if to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
    raise exception 'pipeline "%" has no chunks yet', _pipeline.name
      using errcode = 'object_not_in_prerequisite_state',
            hint    = 'Attach a source first: select rag.attach_source(…);';
  end if;
  -- What only searches read, the index need not be made anew for.
  if _stored.index_options <> _pipeline.index_options and 'none' not in (_stored.index_method, _pipeline.index_method)
     and rag._index_statement(_stored, _index) = rag._index_statement(_pipeline, _index)
     and exists (select from pg_index i where i.indexrelid = to_regclass(format('rag.%I', _index)) and i.indisvalid) then
    update rag.pipelines p set index_options = _pipeline.index_options where p.pipeline_id = _pipeline.pipeline_id;
    done := true;
    return;
  end if;
  if _pipeline.index_method <> 'none' then
    _new := format('%s_%s', _index, left(md5(rag._index_statement(_pipeline, _index)), 8));
    _statement := rag._index_statement(_pipeline, _new, beside => true);
    -- Asked in this order: what is not being built any more and not valid after that has failed.
    _building := exists (select from pg_stat_progress_create_index p where p.index_relid = to_regclass(format('rag.%I', _new)));
    select i.indisvalid into _valid from pg_index i where i.indexrelid = to_regclass(format('rag.%I', _new));
  end if;

  if _pipeline.index_method = 'none' or _valid then
    perform rag._unschedule_rebuild();
    execute format('drop index if exists rag.%I', _index);
    -- Of calls that wanted something else and did not get to their end.
    for _left in
      select c.relname from pg_class c join pg_index i on i.indexrelid = c.oid
      where c.relnamespace = 'rag'::regnamespace and c.relname ~ ('^' || _index || '_[0-9a-f]{8}$') and c.relname is distinct from _new
    loop
      execute format('drop index rag.%I', _left.relname);
    end loop;
    if _valid then
      execute format('alter index rag.%I rename to %I', _new, _index);
    end if;
    update rag.pipelines p
       set index_method = _pipeline.index_method, index_options = _pipeline.index_options, quantization = _pipeline.quantization,
           index_deferred = false
     where p.pipeline_id = _pipeline.pipeline_id;
    done := true;
  elsif _valid is not null and not _building then
    _failure := rag._rebuild_failure();
    perform rag._unschedule_rebuild();
    execute format('drop index if exists rag.%I', _new);
    if begun then
      notice := coalesce(_failure, 'the session that made the index ended before it was done');
    end if;
  elsif _valid is null then
    if not begun then
      perform rag._schedule_rebuild(_statement);
      begun := true;
    else
      notice := rag._rebuild_failure();
      if notice is not null then
        perform rag._unschedule_rebuild();
      end if;
    end if;
  end if;
end
$plpgsql$;
comment on function rag._rebuild_step(text, text, jsonb, text, boolean) is
  'what there is to do now for rag.rebuild_index(): begins, takes a finished index into use (done), or clears away one that failed (notice'
  ' says why)';

create or replace function rag._schedule_rebuild(statement text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if current_database() is distinct from (select s.setting from pg_settings s where s.name = 'cron.database_name') then
    raise exception 'pg_cron does not run in this database, and only a session of its own can make an index concurrently'
      using errcode = 'object_not_in_prerequisite_state',
            detail  = 'Made by hand, the index is taken into use by the same call again.',
            hint    = format('Type: %s; and then the call again.', statement);
  end if;
  if not exists (select from pg_extension e where e.extname = 'pg_cron') then
    create extension pg_cron;
  end if;
  perform rag._unschedule_rebuild();
  -- Every minute, as pg_cron 1.4 knows nothing shorter; "if not exists" makes it do its work once.
  perform cron.schedule(rag._rebuild_job_name(), '* * * * *', statement);
end
$plpgsql$;
comment on function rag._schedule_rebuild(text) is
  'has pg_cron make the index; raises 55000, with what to type, where it does not run in this database';

create or replace function rag._unschedule_rebuild() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if to_regclass('cron.job') is not null then
    perform cron.unschedule(j.jobid) from cron.job j
    where j.jobname = rag._rebuild_job_name() and j.database = current_database();
  end if;
end
$plpgsql$;
comment on function rag._unschedule_rebuild() is 'takes the job that makes an index out of pg_cron';

create or replace function rag._rebuild_failure() returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _failure text;
begin
  if to_regclass('cron.job') is null then
    return null;
  end if;
  select (select d.return_message from cron.job_run_details d where d.jobid = j.jobid and d.status = 'failed' order by d.runid desc limit 1)
  into _failure
  from cron.job j
  where j.jobname = rag._rebuild_job_name() and j.database = current_database();
  return case when found then _failure else 'another session did so, or took the job out of pg_cron' end;
end
$plpgsql$;
comment on function rag._rebuild_failure() is 'what pg_cron says of the job that makes an index, where it failed or is gone';

create or replace procedure rag.rebuild_index(
    pipeline      text  default null,
    index_method  text  default null,
    index_options jsonb default null,
    quantization  text  default null)
  -- Every name is qualified: a procedure with a search path of its own cannot commit.
  language plpgsql
as $plpgsql$
declare
  _step  record;
  _begun bool := false;
begin
  call rag._require_no_transaction('rag.rebuild_index()');
  loop
    select * into _step
    from rag._rebuild_step(rebuild_index.pipeline, rebuild_index.index_method, rebuild_index.index_options, rebuild_index.quantization, _begun);
    commit;
    exit when _step.done;
    if _step.notice is not null then
      raise exception 'the index was not made: %', _step.notice
        using errcode = 'object_not_in_prerequisite_state',
              hint    = 'The one before is in use as it was. Where the reason is gone, call again.';
    end if;
    _begun := _step.begun;
    perform pg_catalog.pg_sleep(0.5);
    commit;
  end loop;
end
$plpgsql$;
comment on procedure rag.rebuild_index(text, text, jsonb, text) is
  'makes the vector index of a pipeline (by default the active one) anew, with other parameters where they are given, beside the one in'
  ' use, and puts it in its place; documents change and searches go on meanwhile. Where only options of searches are others (ef_search,'
  ' probes, oversampling), these are kept and the index stays. It waits for pg_cron to begin, up to a minute, and until the index is made;'
  ' cancelled, the same call goes on from there. It commits as it goes, so it cannot run inside a transaction block. Raises 42704 for an'
  ' unknown pipeline, 22023 for parameters that cannot be, 55000 where pg_cron does not run in this database, with what to type instead';
