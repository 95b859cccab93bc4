-- rag.check(): what is installed. One function a finding: ok, detail and hint; ok is null where it cannot be told.

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
as $sql$ select string_to_array(substring(version from '^[0-9]+(?:[.][0-9]+)*'), '.')::integer[] $sql$;
comment on function rag._version_number(text) is 'a version, to be compared as numbers';

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
                              when v < '{0,8,2}'
                              then '; defects of HNSW: a parallel build can overflow (before 0.8.2), vacuum (before 0.8.4)'
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
