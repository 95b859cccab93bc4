-- rag.check(): is everything as it should be, and if not, what to type. Each check is a function of
-- its own that returns what it found; one that fails says so, and the others go on.

create or replace function rag._check_in_python(name text, out ok boolean, out detail text, out hint text)
  language plpython3u
as $python$
@boot@
from ragstone.server.check import run
return run(plpy, name)
$python$;
comment on function rag._check_in_python(text) is 'a check that the package does';

create or replace function rag._scheduled_workers() returns integer
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (select count(*) from cron.job j where j.jobname like 'ragstone worker %' and j.database = current_database() and j.active);
exception when undefined_table or invalid_schema_name then
  return 0;
end
$plpgsql$;
comment on function rag._scheduled_workers() is 'how many workers pg_cron is to keep running, 0 where it is not in this database';

create or replace function rag._version_number(version text) returns integer[]
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select string_to_array(substring(version from '^\d+(?:\.\d+)*'), '.')::integer[] $sql$;
comment on function rag._version_number(text) is 'a version, to be compared as numbers';

------------------------------------------------------------------------------------------------
-- Installed
------------------------------------------------------------------------------------------------

create or replace function rag._check_postgresql(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select v between 15 and 18 and getdatabaseencoding() = 'UTF8',
         format('%s, %s', current_setting('server_version'), getdatabaseencoding()),
         case when v not between 15 and 18 then 'ragstone is tested with PostgreSQL 15 to 18.'
              when getdatabaseencoding() <> 'UTF8'
              then 'Documents hold all languages: create database … encoding ''UTF8'' template template0, and ragstone in it.' end
  from (select current_setting('server_version_num')::integer / 10000 as v) s
$sql$;

create or replace function rag._check_extension(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select a.default_version = e.extversion,
         format('database %s, installed files %s', e.extversion, coalesce(a.default_version, 'none')),
         case when a.default_version is null then 'The files are gone: make install, or install its package.'
              when a.default_version <> e.extversion then 'Type: alter extension ragstone update; sessions then have to reconnect.' end
  from pg_extension e left join pg_available_extensions a on a.name = e.extname
  where e.extname = 'ragstone'
$sql$;

create or replace function rag._check_package(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  select * into ok, detail, hint from rag._check_in_python('package');
exception when others then
  ok := false;
  detail := sqlerrm;
  hint := case when sqlerrm like '%has ragstone%in memory%' then 'Reconnect: a session loads the package once.'
               else 'The package for this version is not where it was installed: make install, or install its package again.' end;
end
$plpgsql$;

create or replace function rag._check_pgvector(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select v >= '{0,8,0}' and a.default_version = e.extversion,
         e.extversion || case when v < '{0,8,0}' then ': too old'
                              when v < '{0,8,2}' then '; defects of HNSW: a parallel build can overflow (before 0.8.2), vacuum (before 0.8.4)'
                              when v < '{0,8,4}' then '; defect of HNSW: vacuum (before 0.8.4)' else '' end
         || case when a.default_version <> e.extversion then format('; %s is installed', a.default_version) else '' end,
         case when a.default_version <> e.extversion then 'Type: alter extension vector update;'
              when v < '{0,8,0}' then 'Install pgvector 0.8 or newer, then type: alter extension vector update;'
              when v < '{0,8,4}' then 'Upgrade when your distribution has a newer one.' end
  from pg_extension e
  join pg_available_extensions a on a.name = e.extname
  cross join lateral rag._version_number(e.extversion) v
  where e.extname = 'vector'
$sql$;

create or replace function rag._check_embedding(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _started  timestamptz := clock_timestamp();
  _expected integer;
  _given    integer;
begin
  select m.dimension into _expected from rag.models m where m.name = (rag._active_pipeline()).model;
  execute format('select %I.vector_dims(rag.embed(''Is anybody there?''))', rag._vector_schema()) into _given;
  ok := _given = _expected;
  detail := format('%s dimensions in %s ms', _given, round(extract(epoch from clock_timestamp() - _started) * 1000));
  if not ok then
    hint := format('The model should give %s: make install, or install its package again.', _expected);
  end if;
exception when others then
  ok := false;
  detail := sqlerrm;
  hint := 'Searches go by words alone, and nothing is taken in: see the other checks.';
end
$plpgsql$;

------------------------------------------------------------------------------------------------
-- Workers
------------------------------------------------------------------------------------------------

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
    -- What is scheduled there cannot be seen from here, only the workers that came of it.
    ok := exists (select from rag.workers w where rag._worker_is_alive(w.worker_id));
    detail := format('runs in database %s, this is %s', _database, current_database());
    hint := case when not ok then (rag._why_pg_cron_starts_no_workers()).hint end;
  else
    ok := true;
    detail := coalesce((select e.extversion from pg_extension e where e.extname = 'pg_cron'), 'loaded, not used yet') || ' in this database';
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
  _waiting   boolean := exists (select from rag.ingestion_queue q where q.status = 'queued' and q.run_at <= now());
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
  elsif _alive > 0 then
    ok := true;
  elsif _scheduled = 0 then
    ok := not _waiting and null;
    detail := detail || case when _waiting then '; jobs are waiting' else '' end;
    hint := case when (rag._why_pg_cron_starts_no_workers()).problem is null
                 then 'Type: select rag.start_workers(1); or work the queue off by hand: call rag.drain();'
                 else 'See the row pg_cron. Until then work the queue off by hand: call rag.drain();' end;
  else
    -- Only where workers are missing: the table of runs is never pruned, and has no index to go by.
    execute $sql$
      select r.return_message from cron.job_run_details r join cron.job j using (jobid)
      where j.jobname like 'ragstone worker %' and j.database = current_database() and r.status = 'failed'
        and r.runid > (select max(runid) - 1000 from cron.job_run_details)
      order by r.runid desc limit 1 $sql$ into _failure;
    ok := false;
    detail := detail || coalesce('; pg_cron says: ' || left(_failure, 200), '; they begin at the next full minute');
    hint := case when _failure ~* 'background worker' then 'Raise max_worker_processes in postgresql.conf, and restart the server.'
                 else 'A minute from now look again; then into the server''s log, and: select * from cron.job_run_details order by runid desc limit 5;' end;
  end if;
end
$plpgsql$;

create or replace function rag._check_worker_processes(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- pg_cron's launcher and that of logical replication have one each; parallel queries take the rest.
  select s.available >= s.needed,
         format('max_worker_processes %s; needed %s: %s worker(s), 2 launchers', s.available, s.needed, s.workers),
         case when s.available < s.needed
              then format('Put into postgresql.conf: max_worker_processes = %s; and restart the server.', s.needed + current_setting('max_parallel_workers')::integer) end
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
                where q.status = 'running' and q.started_at < now() - interval '2 minutes' and not rag._worker_is_alive(q.worker_id)) as orphans,
               exists (select from rag.workers w where w.started_at < now() - interval '15 minutes' and rag._worker_is_alive(w.worker_id))
               and exists (select from rag.ingestion_queue q where q.status = 'queued' and q.attempts = 0)
               and not exists (select from rag.job_history h where h.finished_at > now() - interval '15 minutes')
               and not exists (select from rag.ingestion_queue q where q.status = 'dead' and q.failed_at > now() - interval '15 minutes') as is_stalled) s
$sql$;

create or replace function rag._check_maintenance(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case when s.last is null and not s.is_due then null else not s.is_due and s.contradictions = 0 end,
         case when s.last is null then 'has not run yet' else format('last run ended %s', date_trunc('second', s.last)) end
         || case when s.contradictions > 0 then format('; it found %s contradiction(s)', s.contradictions) else '' end,
         case when s.contradictions > 0 then 'Look: select * from rag.check_consistency();'
              when s.is_due then 'It should run each night: select rag.start_workers(1); schedules it anew. At once: call rag.maintain();'
              when s.last is null and (rag._why_pg_cron_starts_no_workers()).problem is not null
              then 'See the row pg_cron, which then has it run each night; at once: call rag.maintain();'
              when s.last is null and rag._scheduled_workers() > 0 then 'It runs each night, by the clock of pg_cron; at once: call rag.maintain();'
              when s.last is null then 'rag.start_workers() has it run each night, by the clock of pg_cron; at once: call rag.maintain();' end
  from (select l.last, coalesce(c.count, 0) as contradictions,
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
         case when count(*) = 0 then 'none' else format('%s job(s) are dead, most often: %s', count(*), mode() within group (order by q.error_code)) end,
         case when count(*) > 0 then 'Why, and what to do: select job_id, error, hint from rag.dead_letters; then rag.retry() or rag.discard().' end
  from rag.ingestion_queue q where q.status = 'dead'
$sql$;

------------------------------------------------------------------------------------------------
-- Data
------------------------------------------------------------------------------------------------

create or replace function rag._check_document_root(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _root    text := rag.get('document_root');
  _data    text := current_setting('data_directory');
  _problem text;
begin
  if _root is null then
    ok := not exists (select from rag.sources s where s.path_column is not null);
    detail := case when ok then 'not set; no source has file names' else 'not set: no file can be read' end;
    hint := case when not ok then 'Type: select rag.set(''document_root'', ''/folder/of/the/documents'');' end;
    return;
  end if;
  _problem := rag._check_folder(_root);
  ok := false;
  detail := _root;
  if _problem is not null then
    detail := format('%s: %s', _root, _problem);
    hint := rag._folder_hint(_root);
  elsif rtrim(_root, '/') || '/' = left(_data || '/', length(rtrim(_root, '/')) + 1) then
    detail := format('%s holds the server''s own data in %s', _root, _data);
    hint := 'Whoever may insert a path could search the database''s files: choose a folder of documents alone.';
  else
    ok := true;
  end if;
end
$plpgsql$;

create or replace function rag._check_sources(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source   rag.sources;
  _count    integer := 0;
  _missing  bigint;
  _relation regclass;
begin
  select t.tgrelid into _relation from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal and t.tgname like 'ragstone%'
    and not exists (select from rag._source_of_trigger(rtrim(encode(t.tgargs, 'escape'), '\000')::integer, t.tgrelid))
  limit 1;
  if found then
    ok := false;
    detail := format('%s has triggers of ragstone and is not attached: changes go unseen', _relation);
    hint := format('After restoring a schema, restore the data too, with --disable-triggers; or attach it: select rag.attach_source(%L, …);', _relation);
    return;
  end if;
  for _source in select * from rag.sources order by source_id loop
    _count := _count + 1;
    begin
      perform rag._require_columns(_source);
    exception when undefined_column or datatype_mismatch then
      ok := false;
      detail := format('%s: %s', _source.name, sqlerrm);
      hint := format('Alter the column back, or attach the table anew after: select rag.detach_source(%L);', _source.relation);
      return;
    end;
    if rag._code_of_others(_source.relation) is not null then
      ok := false;
      detail := format('%s is not read: %s', _source.name, rag._code_of_others(_source.relation));
      hint := 'Its owner could run it as ragstone''s owner. Drop what has it; or take the function over, having read it: alter function … owner to …;';
      return;
    end if;
    select count(*) into _missing
    from (select _source.relation::oid as relid union select t.relid from pg_partition_tree(_source.relation) t) r
    where not rag._has_all_triggers(_source.source_id, r.relid);
    -- Those of rag.uploads are no part of a dump: they come back with the next worker or upload.
    if _missing > 0 and not (_source.relation = 'rag.uploads'::regclass and not exists (select from rag._triggers(_source.source_id))) then
      ok := false;
      detail := format('%s: triggers are missing or disabled on %s table(s): changes go unseen', _source.name, _missing);
      hint := format('Attach it anew: select rag.detach_source(%L); then rag.attach_source(…) as before.', _source.relation);
      return;
    end if;
  end loop;
  ok := true;
  detail := format('%s attached', _count);
end
$plpgsql$;

create or replace function rag._check_indexes(out ok boolean, out detail text, out hint text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
  _index    regclass;
  _count    integer := 0;
begin
  ok := false;
  for _pipeline in select * from rag.pipelines p where p.state in ('active', 'building') loop
    if to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
      continue;
    end if;
    select i.indexrelid into _index from pg_index i
    where i.indrelid = to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) and not (i.indisvalid and i.indisready);
    if found then
      detail := format('%s is not valid', _index);
      hint := format('Type: reindex index concurrently %s;', _index);
      return;
    elsif _pipeline.index_method <> 'none' and not _pipeline.index_deferred and not exists (
        select from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
        where i.indrelid = to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) and a.amname = _pipeline.index_method) then
      detail := format('pipeline %s has no %s index: every search by meaning reads all vectors', _pipeline.name, _pipeline.index_method);
      hint := format('It was dropped by hand. Type: select rag.build_index(%L);', _pipeline.name);
      return;
    end if;
    _count := _count + 1;
  end loop;
  ok := true;
  detail := format('valid in %s partition(s)%s', _count,
                   (select '; deferred until the load is done: ' || string_agg(p.name, ', ') from rag.pipelines p where p.index_deferred));
end
$plpgsql$;

create or replace function rag._check_statistics(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select count(*) filter (where s.is_stale) = 0,
         coalesce(string_agg(format('%s: %s rows changed since the last analyze', s.name, s.changed), '; ') filter (where s.is_stale), 'fresh'),
         'Type: ' || string_agg(format('analyze %s;', s.name), ' ') filter (where s.is_stale) || ' and see that autovacuum runs.'
  from (select format('%I.%I', t.schemaname, t.relname) as name, t.n_mod_since_analyze as changed,
               t.n_mod_since_analyze > 10000 and t.n_mod_since_analyze > t.n_live_tup / 2 as is_stale
        from pg_stat_user_tables t
        where t.schemaname = 'rag' and (t.relname like 'document_chunks%' or t.relname in ('documents', 'ingestion_queue'))) s
$sql$;

------------------------------------------------------------------------------------------------
-- Security
------------------------------------------------------------------------------------------------

create or replace function rag._check_row_security(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- What the source hides from a reader, a search must not show.
  select count(s.name) filter (where c.relrowsecurity) = 0 or k.relrowsecurity,
         case when count(s.name) filter (where c.relrowsecurity) = 0 then 'no source has it'
              else format('on in %s; on rag.document_chunks %s', string_agg(s.name, ', ') filter (where c.relrowsecurity),
                          case when k.relrowsecurity then 'too' else 'off: searches show what the table hides' end) end,
         case when count(s.name) filter (where c.relrowsecurity) > 0 and not k.relrowsecurity
              then 'By tenant: select rag.enable_tenant_isolation(); by the source''s own policies, in every search: check_source => true.' end
  from pg_class k
  left join (rag.sources s join pg_class c on c.oid = s.relation) on true
  where k.oid = 'rag.document_chunks'::regclass
  group by k.relrowsecurity
$sql$;

create or replace function rag._check_privileges(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with open as (
    select 'routine ' || p.oid::regprocedure as object from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    where p.pronamespace = 'rag'::regnamespace and a.grantee = 0
    union all
    select 'table ' || c.oid::regclass from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace = 'rag'::regnamespace and a.grantee = 0
  )
  select not exists (select from open) and not exists (select from rag.usage_grants g where g.missing > 0),
         coalesce((select format('everybody has privileges on %s', min(o.object)) from open o having count(*) > 0),
                  (select format('%s lacks %s privilege(s) of level %s', g.role, g.missing, g.level) from rag.usage_grants g where g.missing > 0 limit 1),
                  (select format('nothing for everybody; %s role(s) granted', count(distinct g.role)) from rag.usage_grants g)),
         coalesce((select format('Type: revoke all on %s from public;', min(o.object)) from open o having count(*) > 0),
                  (select format('Type: select rag.grant_usage(%L, level => %L);', g.role, g.level) from rag.usage_grants g where g.missing > 0 limit 1))
$sql$;

------------------------------------------------------------------------------------------------
-- All of them
------------------------------------------------------------------------------------------------

create or replace function rag._checks() returns table (place bigint, name text, call text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select row_number() over (), c, case when c in ('libraries', 'cpu', 'model', 'prepacked', 'extraction', 'ocr', 'memory')
                                       then format('rag._check_in_python(%L)', c) else format('rag._check_%s()', c) end
  from unnest('{postgresql,extension,package,libraries,cpu,model,prepacked,embedding,extraction,ocr,pgvector,
                pg_cron,workers,worker_processes,cron_history,maintenance,stuck_jobs,failures,
                document_root,sources,indexes,statistics,memory,row_security,privileges}'::text[]) c
$sql$;
comment on function rag._checks() is 'the checks of rag.check(), in its order';

create or replace function rag.check() returns table ("check" text, ok boolean, detail text, hint text)
  language plpgsql
  -- SECURITY DEFINER: whoever runs a server may see how it is without reading what is in it.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _check record;
begin
  for _check in select * from rag._checks() c order by c.place loop
    "check" := _check.name;
    begin
      execute 'select * from ' || _check.call into ok, detail, hint;
    exception when others then
      ok := null;
      detail := 'cannot be checked: ' || sqlerrm;
      hint := 'See to the checks above first.';
    end;
    return next;
  end loop;
end
$plpgsql$;
comment on function rag.check() is 'whether everything is as it should be: one row a check, ok (null where it cannot be told, or is not needed here), what was found, and what to do about it. Takes well below a second, most of it for trying out the model and the extraction; changes nothing and raises nothing';
