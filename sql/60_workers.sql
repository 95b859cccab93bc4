-- Workers: by hand, and through pg_cron.

create or replace procedure rag.drain(run_for interval default '0', max_documents bigint default null)
  language plpython3u
as $python$
@boot@
from ragstone.worker.loop import drain
drain(plpy, run_for, max_documents)
$python$;
comment on procedure rag.drain(interval, bigint) is 'works off the queue in this session, and returns when it is empty and run_for has passed, or after max_documents. It commits as it goes, so it cannot run inside a transaction block. Cancelled, it gives back what it has not done';

-- An update: workers have the package of the version before in memory. They end with what they are at,
-- and pg_cron starts others.
update rag.workers w set stop_requested = true;

create or replace function rag._refresh_statistics() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _statistics rag._pipeline_statistics;
  _chunks     bigint;
  _average    real;
begin
  -- One at a time: folding is what would make a few common lexemes hot rows.
  if not pg_try_advisory_xact_lock(rag._lock_class(), 0) then
    return;
  end if;
  with taken as (
    delete from rag._lexeme_changes c
     where c.ctid = any (array(select l.ctid from rag._lexeme_changes l limit 5000))
    returning c.*
  ), lexemes as (
    select t.pipeline_id, u.lexeme, t.text_search_config, sum(t.sign) as chunks, sum(t.sign * cardinality(u.positions)) as occurrences
      from taken t, unnest(t.content_tsv) u
     group by 1, 2, 3
  ), counted as (
    select l.* from lexemes l
    union all
    select t.pipeline_id, '', t.text_search_config, t.chunks,
           coalesce((select sum(l.occurrences) from lexemes l
                     where l.pipeline_id = t.pipeline_id and l.text_search_config = t.text_search_config
                       and not starts_with(l.lexeme, '~')), 0)
      from (select t.pipeline_id, t.text_search_config, sum(t.sign) as chunks from taken t group by 1, 2) t
  )
  insert into rag._lexemes as l (pipeline_id, lexeme, text_search_config, chunks, occurrences)
  select c.* from counted c where (c.chunks, c.occurrences) <> (0, 0)
  on conflict on constraint _lexemes_pkey do update
    set chunks = l.chunks + excluded.chunks, occurrences = l.occurrences + excluded.occurrences;

  for _statistics in select * from rag._pipeline_statistics order by pipeline_id loop
    select sum(l.chunks), greatest(sum(l.occurrences)::real / nullif(sum(l.chunks), 0), 1) into _chunks, _average
    from rag._lexemes l where l.pipeline_id = _statistics.pipeline_id and l.lexeme = '';

    -- The sample is drawn anew each time the corpus has doubled or halved.
    if _chunks > 0 and (_chunks >= 2 * _statistics.background_chunks or 2 * _chunks < _statistics.background_chunks) then
      with drawn as materialized (
        select row_number() over () as place, d.embedding
        from (select c.embedding
              from rag.document_chunks c
              where c.pipeline_id = _statistics.pipeline_id and random() < 2048.0 / _chunks
              order by random()
              limit 256) d
      ), removed as (
        delete from rag._background b
        where b.pipeline_id = _statistics.pipeline_id and b.place > (select count(*) from drawn)
      )
      insert into rag._background as b (pipeline_id, place, embedding)
      select _statistics.pipeline_id, d.place, d.embedding from drawn d
      on conflict on constraint _background_pkey do update set embedding = excluded.embedding;
      update rag._pipeline_statistics s set background_chunks = _chunks where s.pipeline_id = _statistics.pipeline_id;
    end if;

    -- The stored weights hold the average length as it was: they are made anew when it is off by more
    -- than a sixth, while that is cheap. How many there are is counted: after a few large documents many
    -- more are stored than have come into the statistics.
    if _chunks >= 64 and abs(_average / _statistics.average_length - 1) > 1.0 / 6 then
      update rag._pipeline_statistics s set average_length = _average where s.pipeline_id = _statistics.pipeline_id;
      if (select count(*) from (select from rag.document_chunks c where c.pipeline_id = _statistics.pipeline_id limit 20001) c) <= 20000 then
        update rag.document_chunks c set content_bm25 = rag._bm25_weights(c.content_tsv, c.text_search_config, _average)
        where c.pipeline_id = _statistics.pipeline_id;
      end if;
    end if;
  end loop;
end
$plpgsql$;
comment on function rag._refresh_statistics() is 'brings document frequencies, average length and background sample up to date with the chunks, up to 5,000 changes at once; does nothing while another session is at it';

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
    hint := format('Put into postgresql.conf: shared_preload_libraries = ''pg_cron'', cron.database_name = %L, cron.use_background_workers = on; then restart the server. Until then, work the queue off by hand: call rag.drain();', current_database());
  elsif _database <> current_database() then
    problem := format('pg_cron runs in database "%s", not in "%s"', _database, current_database());
    hint := format('In database "%1$s" type: create extension if not exists pg_cron; select cron.schedule_in_database(%2$L, ''* * * * *'', %3$L, %4$L), cron.schedule_in_database(%5$L, ''37 2 * * *'', ''call rag.maintain()'', %4$L);',
                   _database, rag._worker_job_name(1), rag._worker_command(), current_database(), rag._maintenance_job_name());
  end if;
end
$plpgsql$;
comment on function rag._why_pg_cron_starts_no_workers() is 'why rag.start_workers() cannot be used in this database, and what to type instead; nulls where it can';

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
         -- Scheduled by an owner before this one, who may be gone.
         or j.username <> current_user)
     -- Brought by a dump of a database that had another name.
     or (j.jobname like 'ragstone worker %' or j.jobname like 'ragstone maintenance in %')
    and not exists (select from pg_database d where d.datname = j.database);
  perform cron.schedule(rag._maintenance_job_name(), '37 2 * * *', 'call rag.maintain()');
  perform cron.schedule(rag._worker_job_name(n), '* * * * *', rag._worker_command()) from generate_series(1, start_workers.workers) n;
  update rag.workers w set stop_requested = true
  where w.worker_id in (select x.worker_id from rag.workers x order by x.worker_id offset start_workers.workers);
  return start_workers.workers;
end
$plpgsql$;
comment on function rag.start_workers(integer) is 'schedules this many workers with pg_cron, in place of those before, and rag.maintain() at 2:37 at night; they begin at the next full minute. Raises 22023 for a number outside 1 to 64, 55000 where pg_cron is not loaded or runs in another database';

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
    raise notice 'pg_cron runs in database "%": what it has scheduled there for "%" starts again at the next full minute', _cron_database, current_database()
      using hint = format('In database "%s" type: select cron.unschedule(jobid) from cron.job where database = %L and jobname like ''ragstone %%'';',
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
comment on function rag.stop_workers() is 'ends all workers, each after the documents it has claimed, and the nightly maintenance; returns how many workers were taken out of pg_cron';

create or replace view rag.worker_activity as
  select w.worker_id, w.pid, case when w.stop_requested then 'stopping' else w.state end as state,
         date_trunc('second', clock_timestamp() - w.started_at) as up, w.documents, w.chunks, w.tokens,
         (select count(*) from rag.ingestion_queue q where q.status = 'running' and q.worker_id = w.worker_id) as claimed
  from rag.workers w
  where rag._worker_is_alive(w.worker_id);
comment on view rag.worker_activity is 'workers that are alive, and what each has done since it started';
