-- Workers: how they announce themselves, and how pg_cron starts them.

-- After an update, workers still have the package of the version before in memory. They finish the documents they have
-- claimed and end, and pg_cron starts others.
update rag.workers w set stop_requested = true;

create or replace function rag._session_needs() returns table (name text, value text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    -- What would end work that takes its time. The clock of statement_timeout runs already: see ragstone/db/plpy.py.
    ('statement_timeout', '0'), ('transaction_timeout', '0'), ('lock_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
    -- What the next transaction is like.
    ('default_transaction_read_only', 'off'), ('default_transaction_isolation', 'read committed'),
    ('default_transaction_deferrable', 'off'),
    -- Whether our own triggers fire, and which rows a worker sees.
    ('session_replication_role', 'origin'), ('row_security', 'on'), ('gin_fuzzy_search_limit', '0'),
    -- What literals, casts and texts come to.
    ('standard_conforming_strings', 'on'), ('backslash_quote', 'safe_encoding'), ('transform_null_equals', 'off'), ('array_nulls', 'on'),
    ('quote_all_identifiers', 'off'), ('bytea_output', 'hex'), ('datestyle', 'ISO, MDY'), ('intervalstyle', 'postgres'),
    ('timezone', 'UTC'), ('extra_float_digits', '1'), ('xmlbinary', 'base64'), ('xmloption', 'content')
$sql$;
comment on function rag._session_needs() is 'parameters that a worker''s session must have, whatever the database or the role has set';

create or replace function rag._pin_session() returns json
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _parameter record;
  _before    json;
begin
  select json_object_agg(s.name, s.setting) into _before
    from rag._session_needs() n
    join pg_settings s on lower(s.name) = n.name
   where s.setting <> n.value
     -- Whoever has set a timeout in this session means this call.
     and not (s.name ~ 'timeout' and s.source in ('session', 'client'));
  for _parameter in select n.* from rag._session_needs() n join json_object_keys(_before) b on lower(b) = n.name loop
    begin
      perform set_config(_parameter.name, _parameter.value, false);
    exception when insufficient_privilege then
      -- Only a superuser may change session_replication_role.
      null;
    end;
  end loop;
  return _before;
end
$plpgsql$;
comment on function rag._pin_session() is
  'gives this session the parameters of rag._session_needs(), from the next transaction on; returns those that were others, for'
  ' rag._unpin_session()';

create or replace function rag._unpin_session(before json) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _parameter record;
begin
  for _parameter in select * from json_each_text(before) loop
    begin
      perform set_config(_parameter.key, _parameter.value, false);
    exception when insufficient_privilege then
      null;
    end;
  end loop;
end
$plpgsql$;
comment on function rag._unpin_session(json) is 'gives this session back what rag._pin_session() has changed';

create or replace function rag._register_worker() returns integer
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _worker_id integer := nextval('rag._worker_id_seq');
begin
  perform pg_advisory_lock(rag._lock_class(), _worker_id);
  perform rag._free_jobs_of_dead_workers(everyone => true);
  perform rag._follow_uploads();
  perform rag._retry_changes();
  insert into rag.workers (worker_id, pid) values (_worker_id, pg_backend_pid());
  return _worker_id;
end
$plpgsql$;
comment on function rag._register_worker() is 'announces this session as a worker and takes the lock that proves it alive';

create or replace function rag._report_worker(worker_id integer, state text, documents integer, chunks integer, tokens bigint)
  returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _worker rag.workers;
begin
  select * into _worker from rag.workers w where w.worker_id = _report_worker.worker_id;
  -- An idle worker reports several times a second, so only a change is written.
  if (_worker.state, 0, 0) is distinct from (_report_worker.state, _report_worker.documents, _report_worker.chunks) then
    update rag.workers w
       set state = _report_worker.state, documents = w.documents + _report_worker.documents,
           chunks = w.chunks + _report_worker.chunks, tokens = w.tokens + _report_worker.tokens
     where w.worker_id = _report_worker.worker_id;
  end if;
  return coalesce(_worker.stop_requested, true);
end
$plpgsql$;
comment on function rag._report_worker(integer, text, integer, integer, bigint) is
  'adds what a worker has done since its last report; returns whether it shall stop';

create or replace function rag._leave_worker(worker_id integer) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  delete from rag.workers w where w.worker_id = _leave_worker.worker_id;
  select pg_advisory_unlock(rag._lock_class(), _leave_worker.worker_id);
$sql$;

create or replace function rag._worker_job_name(number integer) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select format('ragstone worker %s in %s', number, current_database()) $sql$;

create or replace function rag._maintenance_job_name() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select format('ragstone maintenance in %s', current_database()) $sql$;

create or replace function rag._worker_command() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select format('call rag.drain(run_for => interval %L)', rag.get('worker_lifetime_s') || ' s') $sql$;
comment on function rag._worker_command() is 'what pg_cron runs each minute for each worker';

create or replace function rag._why_pg_cron_starts_no_workers(out problem text, out hint text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  -- Not current_setting(): that also knows what postgresql.conf says to a library that is not loaded.
  _database text := (select s.setting from pg_settings s where s.name = 'cron.database_name');
begin
  if _database is null then
    problem := 'pg_cron is not loaded';
    hint := format('Put into postgresql.conf: shared_preload_libraries = ''pg_cron'', cron.database_name = %L,'
                   ' cron.use_background_workers = on; then restart the server. Until then, work the queue off by hand:'
                   ' call rag.drain();', current_database());
  elsif _database <> current_database() then
    problem := format('pg_cron runs in database "%s", not in "%s"', _database, current_database());
    hint := format('In database "%1$s" type: create extension if not exists pg_cron;'
                   ' select cron.schedule_in_database(%2$L, ''* * * * *'', %3$L, %4$L),'
                   ' cron.schedule_in_database(%5$L, ''37 2 * * *'', ''call rag.maintain()'', %4$L);',
                   _database, rag._worker_job_name(1), rag._worker_command(), current_database(), rag._maintenance_job_name());
  end if;
end
$plpgsql$;
comment on function rag._why_pg_cron_starts_no_workers() is
  'why rag.start_workers() cannot be used in this database, and what to type instead; nulls where it can';

create or replace function rag.start_workers(workers integer default 1) returns integer
  language plpgsql
  -- SECURITY DEFINER: workers run as ragstone's owner whoever starts them, and do nothing but rag.drain().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _obstacle record := rag._why_pg_cron_starts_no_workers();
begin
  if start_workers.workers is null or start_workers.workers not between 1 and 64 then
    raise exception 'the number of workers is from 1 to 64, not %', start_workers.workers
      using errcode = 'invalid_parameter_value',
            hint    = 'One worker keeps one core busy. Type, for two: select rag.start_workers(2);';
  end if;
  if _obstacle.problem is not null then
    raise exception '%', _obstacle.problem
      using errcode = 'object_not_in_prerequisite_state',
            detail  = 'Workers are started by pg_cron.',
            hint    = _obstacle.hint;
  end if;
  if not exists (select from pg_extension e where e.extname = 'pg_cron') then
    create extension pg_cron;
  end if;

  perform cron.unschedule(j.jobid) from cron.job j
  where j.database = current_database() and (j.jobname like 'ragstone worker %' or j.jobname = rag._maintenance_job_name())
    and (j.jobname <> all (select rag._worker_job_name(n) from generate_series(1, start_workers.workers) n)
         -- Scheduled by a former owner, who may be gone.
         or j.username <> current_user)
     -- Restored from the dump of a database that had another name.
     or (j.jobname like 'ragstone worker %' or j.jobname like 'ragstone maintenance in %')
    and not exists (select from pg_database d where d.datname = j.database);
  perform cron.schedule(rag._maintenance_job_name(), '37 2 * * *', 'call rag.maintain()');
  perform cron.schedule(rag._worker_job_name(n), '* * * * *', rag._worker_command()) from generate_series(1, start_workers.workers) n;
  update rag.workers w set stop_requested = true
  where w.worker_id in (select x.worker_id from rag.workers x order by x.worker_id offset start_workers.workers);
  return start_workers.workers;
end
$plpgsql$;
comment on function rag.start_workers(integer) is
  'schedules this many workers with pg_cron, in place of those before, and rag.maintain() at 2:37 at night; they begin at the next full'
  ' minute. Raises 22023 for a number outside 1 to 64, 55000 where pg_cron is not loaded or runs in another database';

create or replace function rag.stop_workers() returns integer
  language plpgsql
  -- SECURITY DEFINER: the jobs of pg_cron and the list of workers are those of ragstone's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _stopped       integer := 0;
  _cron_database text := (select s.setting from pg_settings s where s.name = 'cron.database_name');
begin
  if _cron_database <> current_database() then
    raise notice 'pg_cron runs in database "%": what it has scheduled there for "%" starts again at the next full minute',
                 _cron_database, current_database()
      using hint = format('In database "%s" type: select cron.unschedule(jobid) from cron.job'
                          ' where database = %L and jobname like ''ragstone %%'';',
                          _cron_database, current_database());
  end if;
  if exists (select from pg_extension e where e.extname = 'pg_cron') then
    select count(cron.unschedule(j.jobid)) into _stopped from cron.job j
    where j.jobname like 'ragstone worker %' and j.database = current_database();
    perform cron.unschedule(j.jobid) from cron.job j
    where j.jobname = rag._maintenance_job_name() and j.database = current_database();
  end if;
  update rag.workers w set stop_requested = true;
  return _stopped;
end
$plpgsql$;
comment on function rag.stop_workers() is
  'ends all workers, each after the documents it has claimed, and the nightly maintenance; returns how many workers were taken out of'
  ' pg_cron';

create or replace view rag.worker_activity as
  select w.worker_id, w.pid, case when w.stop_requested then 'stopping' else w.state end as state,
         date_trunc('second', clock_timestamp() - w.started_at) as up, w.documents, w.chunks, w.tokens,
         (select count(*) from rag.ingestion_queue q where q.status = 'running' and q.worker_id = w.worker_id) as claimed
  from rag.workers w
  where rag._worker_is_alive(w.worker_id);
comment on view rag.worker_activity is 'workers that are alive, and what each has done since it started';
