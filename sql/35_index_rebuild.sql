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
  perform rag._check_index(_pipeline);
  return _pipeline;
end
$plpgsql$;
comment on function rag._pipeline_with_index(text, text, jsonb, text) is 'a pipeline as it is with another vector index; what is null stays. Raises 42704 for an unknown name, 22023 for what cannot be';

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
comment on function rag._rebuild_step(text, text, jsonb, text, boolean) is 'what there is to do now for rag.rebuild_index(): begins, takes a finished index into use (done), or clears away one that failed (notice says why)';

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
comment on function rag._schedule_rebuild(text) is 'has pg_cron make the index; raises 55000, with what to type, where it does not run in this database';

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

create or replace procedure rag._require_no_transaction(name text)
  language plpython3u
as $python$
@boot@
from ragstone.server.maintenance import require_no_transaction
require_no_transaction(plpy, name)
$python$;
comment on procedure rag._require_no_transaction(text) is 'raises 25001 inside a transaction block, in the name of a procedure';

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
comment on procedure rag.rebuild_index(text, text, jsonb, text) is 'makes the vector index of a pipeline (by default the active one) anew, with other parameters where they are given, beside the one in use, and puts it in its place; documents change and searches go on meanwhile. Where only options of searches are others (ef_search, probes, oversampling), these are kept and the index stays. It waits for pg_cron to begin, up to a minute, and until the index is made; cancelled, the same call goes on from there. It commits as it goes, so it cannot run inside a transaction block. Raises 42704 for an unknown pipeline, 22023 for parameters that cannot be, 55000 where pg_cron does not run in this database, with what to type instead';
