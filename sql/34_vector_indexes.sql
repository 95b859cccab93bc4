-- Vector indexes: the statement that makes one, deferring one until after a first load, and rebuilding one while
-- documents change.

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
    -- Options that only searches read are not among the index's.
    (select string_agg(format('%I = %L', o.key, o.value), ', ' order by o.key)
     from jsonb_each_text(case pipeline.index_method
                            when 'hnsw' then jsonb_build_object('m', 16, 'ef_construction', 64)
                            else jsonb_build_object('lists', 100)
                          end || pipeline.index_options) o
     where o.key not in ('ef_search', 'probes', 'oversampling')))
$sql$;
comment on function rag._index_statement(rag.pipelines, text, boolean) is
  'the statement that makes the vector index of a pipeline, under that name; beside: while documents change';

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
    when pipeline.index_method not in ('hnsw', 'ivfflat', 'none')
    then format('there is no index method %s', quote_ident(pipeline.index_method))
    when pipeline.quantization not in ('none', 'half', 'binary')
    then format('there is no quantization %s', quote_ident(pipeline.quantization))
    when jsonb_typeof(pipeline.index_options) <> 'object' then 'index_options is no JSON object'
    else (
      select case when k.option is null then format('%s is no index option of %s', quote_ident(left(o.key, 40)), pipeline.index_method)
                  else format('%s is a whole number from %s to %s, not %s', k.option, k.least, k.most, left(o.value::text, 40)) end
      from jsonb_each(pipeline.index_options) o
      -- The bounds are those of pgvector.
      left join (values ('m', 'hnsw', 2, 100), ('ef_construction', 'hnsw', 4, 1000), ('ef_search', 'hnsw', 1, 1000),
                        ('lists', 'ivfflat', 1, 32768), ('probes', 'ivfflat', 1, 32768), ('oversampling', pipeline.index_method, 1, 1000))
                as k (option, method, least, most) on k.option = o.key and k.method = pipeline.index_method
      where k.option is null or o.value::text !~ '^[0-9]{1,5}$' or o.value::text::integer not between k.least and k.most
      order by o.key limit 1)
  end;
  if _fault is null and pipeline.index_method = 'hnsw'
     and coalesce((pipeline.index_options ->> 'ef_construction')::integer, 64)
         < 2 * coalesce((pipeline.index_options ->> 'm')::integer, 16) then
    _fault := format('ef_construction is at least twice m, so %s or more, not %s',
                     2 * coalesce((pipeline.index_options ->> 'm')::integer, 16),
                     coalesce(pipeline.index_options ->> 'ef_construction', '64, which it is where it is left out'));
  end if;
  if _fault is not null then
    raise exception '%', _fault
      using errcode = 'invalid_parameter_value',
            hint    = 'What each can be is said by: \d+ rag.pipelines; for example: index_method => ''hnsw'','
                      ' index_options => ''{"m": 24, "ef_construction": 100}''.';
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

create or replace function rag.defer_index(pipeline text default 'active') returns void
  language plpgsql
  -- SECURITY DEFINER: indexes belong to ragstone's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._locked_pipeline(defer_index.pipeline);
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
  select m.dimension into strict _dimension
  from rag.pipelines p join rag.models m on m.name = p.model
  where p.pipeline_id = _build_index.pipeline_id;
  perform rag._ensure_partition(_build_index.pipeline_id);
  -- Whoever changes documents waits for the index; searches do not.
  execute format('lock table rag.%I in share mode', rag._partition(_build_index.pipeline_id));
  execute format('select count(*) from rag.%I', rag._partition(_build_index.pipeline_id)) into _rows;
  -- In memory the graph of HNSW has for each row a vector, some 40 neighbours and their distances.
  _memory := rag._build_memory(greatest((_rows * (4 * _dimension + 700) * 1.1)::bigint,
                                        pg_size_bytes(current_setting('maintenance_work_mem'))));
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
  _pipeline rag.pipelines := rag._pipeline(build_index.pipeline);
  _started  timestamptz := clock_timestamp();
begin
  -- One session at a time builds it.
  perform from rag.pipelines p where p.pipeline_id = _pipeline.pipeline_id for no key update;
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
     where p.index_deferred and p.state in ('active', 'building')
       and to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) is not null
       -- The load is over when nothing waits, nothing runs, and no change is still to be turned into jobs.
       and not exists (select from rag._changes)
       and not exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id)
       and not exists (select from rag.ingestion_queue q where q.pipeline_id = p.pipeline_id and q.status <> 'dead')
     order by p.pipeline_id
       for no key update skip locked
  loop
    execute format('select not exists (select from rag.%I)', rag._partition(_pipeline.pipeline_id)) into _is_empty;
    -- The load has not begun yet.
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
  -- SECURITY DEFINER: PostgreSQL shows what another session is doing only to the privileged.
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
-- Rebuilding an index, or putting another in its place, while documents change and searches go on.
--
-- No function and no procedure can run "create index concurrently". So pg_cron runs it in a session of its own. Where
-- pg_cron runs in another database, the caller types the statement.

create or replace function rag._vector_indexes(pipeline_id integer)
  returns table (index regclass, name name, method name, expression text, is_valid boolean, is_being_built boolean)
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  select c.oid, c.relname, a.amname, pg_get_indexdef(c.oid, 1, true), i.indisvalid and i.indisready,
         exists (select from pg_stat_progress_create_index b where b.index_relid = c.oid)
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_am a on a.oid = c.relam
   where i.indrelid = to_regclass(format('rag.%I', rag._partition(_vector_indexes.pipeline_id))) and a.amname in ('hnsw', 'ivfflat')
$sql$;
comment on function rag._vector_indexes(integer) is 'the indexes of methods for vectors that a pipeline''s partition has';

create or replace function rag._left_by_rebuild(pipeline_id integer, name name) returns boolean
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Names of rag._rebuild_step(), and of "reindex concurrently".
  select name ~ ('^' || rag._vector_index(pipeline_id) || '(_[0-9a-f]{8}|(_[0-9a-f]{8})?_cc(new|old)[0-9]*)$')
$sql$;
comment on function rag._left_by_rebuild(integer, name) is 'whether an index has the name of one that was built to replace a pipeline''s';

create or replace function rag._needless_indexes(pipeline rag.pipelines) returns table (index regclass, reason text, remedy text)
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  select i.indexrelid::regclass, 'is not valid', format('Type: reindex index concurrently %s;', i.indexrelid::regclass)
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
   where i.indrelid = to_regclass(format('rag.%I', rag._partition(pipeline.pipeline_id))) and not (i.indisvalid and i.indisready)
     and not rag._left_by_rebuild(pipeline.pipeline_id, c.relname)
     and not exists (select from pg_stat_progress_create_index b where b.index_relid = i.indexrelid)
  union all
  select v.index, 'was built by rag.rebuild_index() or "reindex concurrently", and is not in use',
         format('The next rag.rebuild_index() uses it or drops it. Or type: drop index %s;', v.index)
    from rag._vector_indexes(pipeline.pipeline_id) v
   where rag._left_by_rebuild(pipeline.pipeline_id, v.name) and not v.is_being_built and not rag._is_rebuilding()
  union all
  select v.index, format('does the work of rag.%I', rag._vector_index(pipeline.pipeline_id)), format('Type: drop index %s;', v.index)
    from rag._vector_indexes(pipeline.pipeline_id) v
    join rag._vector_indexes(pipeline.pipeline_id) o
      on o.name = rag._vector_index(pipeline.pipeline_id) and (o.method, o.expression) = (v.method, v.expression)
   where v.index <> o.index and v.is_valid and not v.is_being_built and not rag._left_by_rebuild(pipeline.pipeline_id, v.name)
$sql$;
comment on function rag._needless_indexes(rag.pipelines) is
  'indexes of a pipeline''s partition that only cost writes: not valid, left by a rebuild, or doing what another does';

create or replace function rag._rebuild_job_name() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select format('ragstone index in %s', current_database()) $sql$;

create or replace function rag._show_rebuilding() returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$ select pg_advisory_xact_lock_shared(rag._lock_class(), -1) $sql$;
comment on function rag._show_rebuilding() is 'holds, until the end of the transaction, the lock that rag._is_rebuilding() looks for';

create or replace function rag._is_rebuilding() returns boolean
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$ select rag._worker_is_alive(-1) $sql$;
comment on function rag._is_rebuilding() is 'whether a session is within rag.rebuild_index()';

create or replace function rag._has_abandoned_rebuild() returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if to_regclass('cron.job') is null then
    return false;
  end if;
  return not rag._is_rebuilding()
         and exists (select from cron.job j where j.jobname = rag._rebuild_job_name() and j.database = current_database());
end
$plpgsql$;
comment on function rag._has_abandoned_rebuild() is 'whether pg_cron has the job of a rag.rebuild_index() that has ended';

create or replace function rag._pipeline_with_index(name text, index_method text, index_options jsonb, quantization text)
  returns rag.pipelines
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._pipeline(coalesce(name, 'active'));
  _method   constant text := coalesce(_pipeline_with_index.index_method, _pipeline.index_method);
begin
  _pipeline.index_options := coalesce(_pipeline_with_index.index_options,
                                      case when _method = _pipeline.index_method then _pipeline.index_options else '{}' end);
  _pipeline.index_method := _method;
  _pipeline.quantization := coalesce(_pipeline_with_index.quantization, _pipeline.quantization);
  perform rag._require_index_options(_pipeline);
  return _pipeline;
end
$plpgsql$;
comment on function rag._pipeline_with_index(text, text, jsonb, text) is
  'a pipeline as it is with another vector index; what is null stays. Raises 42704 for an unknown name, 22023 for what cannot be';

create or replace function rag._transactions_under_way() returns text[]
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  select coalesce(array_agg(l.transactionid::text), '{}')
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
     and a.datname = current_database() and l.pid <> pg_backend_pid()
$sql$;
comment on function rag._transactions_under_way() is 'transactions of other sessions in this database that have written something';

create or replace function rag._rebuild_step(
    pipeline text, index_method text, index_options jsonb, quantization text,
    inout begun boolean, inout awaited text[], out done boolean, out notice text)
  -- Volatile: every query sees what is committed by then.
  language plpgsql volatile
  -- SECURITY DEFINER: indexes and pg_cron's jobs are those of ragstone's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _stored    constant rag.pipelines := rag._pipeline(coalesce(pipeline, 'active'));
  _pipeline  constant rag.pipelines := rag._pipeline_with_index(pipeline, index_method, index_options, quantization);
  _index     constant text := rag._vector_index(_pipeline.pipeline_id);
  -- The name tells what the index is made of: one that was left by a call with other parameters is not taken for ours.
  _new       text;
  _statement text;
  _building  boolean;
  _valid     boolean;
  _failure   text;
begin
  done := false;
  perform rag._show_rebuilding();
  if to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
    raise exception 'pipeline "%" has no chunks yet', _pipeline.name
      using errcode = 'object_not_in_prerequisite_state',
            hint    = 'Attach a source first: select rag.attach_source(…);';
  end if;
  -- Options that only searches read need no other index.
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
    select i.indisvalid into _valid from pg_index i where i.indexrelid = to_regclass(format('rag.%I', _new));
    -- By the table: the index is visible a moment before its own number is shown.
    _building := exists (select from pg_stat_progress_create_index b
                          where b.relid = to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id)))
                            and b.index_relid in (0, to_regclass(format('rag.%I', _new))));
  end if;

  if _pipeline.index_method = 'none' or _valid then
    perform rag._use_rebuilt_index(_pipeline, _new);
    done := true;
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
  elsif _building then
    awaited := null;
  elsif awaited is null then
    -- Nobody builds it any more, and it is not valid: it has failed, or the transaction that makes it valid is about to
    -- commit. Dropping it now would make that one fail. So the transactions under way are awaited first.
    awaited := rag._transactions_under_way();
  elsif not awaited && rag._transactions_under_way() then
    _failure := rag._rebuild_failure();
    perform rag._unschedule_rebuild();
    execute format('drop index if exists rag.%I', _new);
    awaited := null;
    if begun then
      notice := coalesce(_failure, 'the session that made the index ended before it was done');
    end if;
  end if;
end
$plpgsql$;
comment on function rag._rebuild_step(text, text, jsonb, text, boolean, text[]) is
  'what there is to do now for rag.rebuild_index(): begins, takes a finished index into use (done), or clears away one that failed (notice'
  ' says why). begun and awaited are those of the step before';

create or replace function rag._use_rebuilt_index(pipeline rag.pipelines, new_index text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _index constant text := rag._vector_index(pipeline.pipeline_id);
  _left  name;
begin
  perform rag._unschedule_rebuild();
  execute format('drop index if exists rag.%I', _index);
  -- Calls that wanted something else and did not get to their end have left these.
  for _left in
    select v.name from rag._vector_indexes(pipeline.pipeline_id) v
     where rag._left_by_rebuild(pipeline.pipeline_id, v.name) and v.name is distinct from new_index and not v.is_being_built
  loop
    execute format('drop index rag.%I', _left);
  end loop;
  if new_index is not null then
    execute format('alter index rag.%I rename to %I', new_index, _index);
  end if;
  update rag.pipelines p
     set index_method = pipeline.index_method, index_options = pipeline.index_options, quantization = pipeline.quantization,
         index_deferred = false
   where p.pipeline_id = pipeline.pipeline_id;
end
$plpgsql$;
comment on function rag._use_rebuilt_index(rag.pipelines, text) is
  'puts an index (null: none) in the place of a pipeline''s, drops what earlier rebuilds left, and keeps the parameters';

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
  -- Every minute: pg_cron 1.4 knows nothing shorter. "if not exists" in the statement has it build the index once.
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
  _step    record;
  _begun   bool := false;
  _awaited text[];
begin
  call rag._require_no_transaction('rag.rebuild_index()');
  loop
    select * into _step
    from rag._rebuild_step(rebuild_index.pipeline, rebuild_index.index_method, rebuild_index.index_options, rebuild_index.quantization,
                           _begun, _awaited);
    commit;
    exit when _step.done;
    if _step.notice is not null then
      raise exception 'the index was not made: %', _step.notice
        using errcode = 'object_not_in_prerequisite_state',
              hint    = 'The one before is in use as it was. Where the reason is gone, call again.';
    end if;
    _begun := _step.begun;
    _awaited := _step.awaited;
    perform rag._show_rebuilding();
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
