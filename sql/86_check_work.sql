-- rag.check(): workers and their jobs.

create or replace function rag._check_pg_cron(out ok boolean, out detail text, out hint text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _database text := (select s.setting from pg_settings s where s.name = 'cron.database_name');
begin
  ok := false;
  if _database is null then
    detail := 'not loaded: nothing starts workers';
    hint := (rag._why_pg_cron_starts_no_workers()).hint;
  elsif current_setting('cron.use_background_workers') <> 'on' then
    detail := 'cron.use_background_workers is off: each worker needs a connection that pg_hba.conf lets in without a password';
    hint := 'Put into postgresql.conf: cron.use_background_workers = on; then restart the server.';
  elsif pg_has_role('pg_read_all_stats', 'usage')
        and not exists (select from pg_stat_activity a where a.backend_type = 'pg_cron launcher') and not pg_is_in_recovery() then
    detail := 'its launcher is not running: somebody ended it, or max_worker_processes left it no place';
    hint := 'Restart the server, which is the only way to start it again. Until then: call rag.drain();';
  elsif _database <> current_database() then
    -- Jobs of another database cannot be seen from here, only the workers they have started.
    ok := exists (select from rag.workers w where rag._worker_is_alive(w.worker_id));
    detail := format('runs in database %s, this is %s', _database, current_database());
    hint := case when not ok then (rag._why_pg_cron_starts_no_workers()).hint end;
  else
    ok := true;
    detail := coalesce((select e.extversion from pg_extension e where e.extname = 'pg_cron'), 'loaded, not used yet')
              || ' in this database';
  end if;
end
$plpgsql$;

create or replace function rag._check_workers(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _scheduled integer := rag._scheduled_workers();
  _alive     integer := (select count(*) from rag.workers w where rag._worker_is_alive(w.worker_id));
  _waiting   boolean := exists (select from rag.ingestion_queue q where q.status = 'queued' and q.run_at <= now())
                        or exists (select from rag._changes);
  _failure   text;
  _gone      text;
begin
  detail := format('%s alive, %s scheduled', _alive, _scheduled);
  if to_regclass('cron.job') is not null then
    execute $sql$
      select j.username from cron.job j
      where j.jobname like 'ragstone worker %' and j.database = current_database()
        and not exists (select from pg_roles r where r.rolname = j.username) limit 1 $sql$ into _gone;
  end if;
  if pg_is_in_recovery() then
    detail := 'none: this is a standby';
    return;
  elsif _gone is not null then
    ok := false;
    detail := format('%s; scheduled by role "%s", which is gone', detail, _gone);
    hint := format('Type: select rag.start_workers(%s);', _scheduled);
  elsif rag.get('workers_paused') = 'on' then
    ok := not _waiting and null;
    detail := detail || '; paused' || case when _waiting then ', and jobs are waiting' else '' end;
    hint := 'To go on: select rag.set(''workers_paused'', null);';
  elsif _alive > 0 then
    ok := true;
  elsif _scheduled = 0 then
    ok := not _waiting and null;
    detail := detail || case when _waiting then '; jobs are waiting' else '' end;
    hint := case when (rag._why_pg_cron_starts_no_workers()).problem is null
                 then 'Type: select rag.start_workers(1); or work the queue off by hand: call rag.drain();'
                 else 'See the row pg_cron. Until then work the queue off by hand: call rag.drain();' end;
  else
    -- Read only where workers are missing: the table of runs can be large, and has no index for this.
    execute $sql$
      select r.return_message from cron.job_run_details r join cron.job j using (jobid)
      where j.jobname like 'ragstone worker %' and j.database = current_database() and r.status = 'failed'
        and r.runid > (select max(runid) - 1000 from cron.job_run_details)
      order by r.runid desc limit 1 $sql$ into _failure;
    ok := false;
    detail := detail || coalesce('; pg_cron says: ' || left(_failure, 200), '; they begin at the next full minute');
    hint := case when _failure ~* 'background worker' then 'Raise max_worker_processes in postgresql.conf, and restart the server.'
                 else 'Look again in a minute; then into the server''s log, and:'
                      ' select * from cron.job_run_details order by runid desc limit 5;' end;
  end if;
end
$plpgsql$;

create or replace function rag._check_worker_processes(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The launchers of pg_cron and of logical replication take one each; parallel queries share the rest.
  select s.available >= s.needed,
         format('max_worker_processes %s; needed %s: %s worker(s), 2 launchers', s.available, s.needed, s.workers),
         case when s.available < s.needed
              then format('Put into postgresql.conf: max_worker_processes = %s; and restart the server.',
                          s.needed + current_setting('max_parallel_workers')::integer) end
  from (select current_setting('max_worker_processes')::integer as available, w.workers, w.workers + 2 as needed
        from (select rag._scheduled_workers() as workers) w) s
$sql$;

create or replace function rag._check_cron_history(out ok boolean, out detail text, out hint text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _bytes bigint := pg_total_relation_size(to_regclass('cron.job_run_details'));
begin
  if _bytes is null then
    detail := 'pg_cron is not in this database';
    return;
  end if;
  ok := _bytes < 200000000;
  detail := 'cron.job_run_details has ' || pg_size_pretty(_bytes);
  if not ok then
    hint := 'pg_cron never prunes it: delete from cron.job_run_details where end_time < now() - interval ''7 days'';';
  end if;
end
$plpgsql$;

create or replace function rag._check_stuck_jobs(out ok boolean, out detail text, out hint text)
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  select s.orphans = 0 and not s.is_stalled,
         case when s.orphans > 0 then format('%s job(s) of workers that are gone', s.orphans)
              when s.is_stalled then 'jobs wait, workers are alive, and nothing has been finished for a quarter of an hour'
              else 'none' end,
         case when s.orphans > 0 then 'The next worker frees them: see the row workers, or call rag.drain();'
              when s.is_stalled then 'What they are doing: select * from rag.worker_activity; and in the server''s log.' end
  from (select (select count(*) from rag.ingestion_queue q
                where q.status = 'running' and q.started_at < now() - interval '2 minutes'
                  and not rag._worker_is_alive(q.worker_id)) as orphans,
               exists (select from rag.workers w where w.started_at < now() - interval '15 minutes' and rag._worker_is_alive(w.worker_id))
               and (exists (select from rag.ingestion_queue q where q.status = 'queued' and q.attempts = 0)
                    or exists (select from rag._changes c where c.attempts = 0))
               and not exists (select from rag.job_history h where h.finished_at > now() - interval '15 minutes')
               and not exists (select from rag.ingestion_queue q
                               where q.status = 'dead' and q.failed_at > now() - interval '15 minutes') as is_stalled) s
$sql$;

create or replace function rag._check_maintenance(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case when s.last is null and not s.is_due then null else not s.is_due and s.contradictions = 0 and s.failed is null end,
         case when s.last is null then 'has not run yet' else format('last run ended %s', date_trunc('second', s.last)) end
         || case when s.contradictions > 0 then format('; it found %s contradiction(s)', s.contradictions) else '' end
         || coalesce('; failed: ' || s.failed, ''),
         case when s.contradictions > 0 then 'Look: select * from rag.check_consistency();'
              when s.failed is not null then 'Remove the cause, then try it at once: call rag.maintain();'
              when s.is_due then 'It should run each night: select rag.start_workers(1); schedules it anew. At once: call rag.maintain();'
              when s.last is null and (rag._why_pg_cron_starts_no_workers()).problem is not null
              then 'See the row pg_cron, which then has it run each night; at once: call rag.maintain();'
              when s.last is null and rag._scheduled_workers() > 0
              then 'It runs each night, by the clock of pg_cron; at once: call rag.maintain();'
              when s.last is null
              then 'rag.start_workers() has it run each night, by the clock of pg_cron; at once: call rag.maintain();' end
  from (select l.last, coalesce(c.count, 0) as contradictions,
               (select string_agg(format('%s (%s)', t.task, t.error), ', ' order by t.task)
                from (select distinct on (m.task) m.task, m.error from rag.maintenance_log m
                      order by m.task, m.finished_at desc) t
                where t.error is not null) as failed,
               coalesce(l.last < now() - interval '50 hours', false) and rag._scheduled_workers() > 0 as is_due
        from (select max(l.finished_at) as last from rag.maintenance_log l) l
        left join lateral (select m.count from rag.maintenance_log m
                           where m.task = 'contradictions found' order by m.finished_at desc limit 1) c on true) s
$sql$;

create or replace function rag._check_failures(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select count(*) = 0,
         case when count(*) = 0 then 'none'
              else format('%s job(s) are dead, most often: %s', count(*), mode() within group (order by q.error_code)) end,
         case when count(*) > 0
              then 'Why, and what to do: select job_id, error, hint from rag.dead_letters; then rag.retry() or rag.discard().' end
  from rag.ingestion_queue q where q.status = 'dead'
$sql$;
