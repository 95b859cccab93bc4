-- Settings: privileged, typed, with a default and a checked setter.

create or replace function rag._setting_definitions()
  returns table (name text, kind text, default_value text, minimum numeric, maximum numeric, unit text, description text)
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    ('document_root',          'folder',  null,         null, null,     null,         'the only folder from which document files are read'),
    ('max_file_bytes',         'integer', '52428800',   1,    1e9,      'bytes',      'largest file that is read'),
    ('max_pages',              'integer', '2000',       1,    1e6,      'pages',      'most pages a document may have'),
    ('max_text_characters',    'integer', '10000000',   1000, 1e8,      'characters', 'most text taken from one document'),
    ('max_chunks',             'integer', '50000',      1,    1e6,      'chunks',     'most chunks one document may have'),
    ('extraction_memory_bytes','integer', '536870912',  134217728, 1e11, 'bytes',     'address space of the extraction child'),
    ('extraction_cpu_s',       'integer', '60',         1,    86400,    's',          'CPU time for extracting one document'),
    ('extraction_wall_s',      'integer', '120',        1,    86400,    's',          'wall time for extracting one document'),
    ('max_attempts',           'integer', '5',          1,    100,      'attempts',   'attempts before a job is dead'),
    ('retry_delays_s',         'integers','30,120,300,900,3600', 0, 1e6, 's',         'wait before each further attempt; the last one repeats'),
    ('claim_documents',        'integer', '16',         1,    1000,     'documents',  'most documents a worker claims at once'),
    ('poll_interval_ms',       'integer', '250',        10,   60000,    'ms',         'how often an idle worker looks for work'),
    ('worker_lifetime_s',      'integer', '120',        1,    86400,    's',          'a worker started by pg_cron ends after this long, and pg_cron starts the next'),
    ('job_history_days',       'integer', '30',         0,    36500,    'days',       'how long finished jobs can be looked up'),
    ('query_cache_entries',    'integer', '10000',      0,    1e7,      'queries',    'most query embeddings kept'),
    ('query_cache_days',       'integer', '30',         0,    36500,    'days',       'unused query embeddings are dropped after this long'),
    ('notifications',          'boolean', 'off',        null, null,     null,         'notify channel document_changes of every changed document')
$sql$;

create or replace view rag.settings as
  select d.name, coalesce(s.value, d.default_value) as value, d.unit, d.default_value, s.name is not null as changed, d.description
  from rag._setting_definitions() d
  left join rag._settings s on s.name = d.name;
comment on view rag.settings is 'all settings with value, unit, default and meaning; change one with rag.set(name, value)';

create or replace function rag.get(name text) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _value text;
begin
  select s.value into _value from rag.settings s where s.name = get.name;
  if not found then
    raise exception 'there is no setting "%"', get.name
      using errcode = 'undefined_object',
            hint    = 'Settings are listed by: select name, description from rag.settings;';
  end if;
  return _value;
end
$plpgsql$;
comment on function rag.get(text) is 'value of a setting; raises 42704 for a name that is none';

create or replace function rag._check_folder(path text) returns text
  language plpython3u
as $python$
@boot@
from ragstone.api import check_folder
return check_folder(path)
$python$;
comment on function rag._check_folder(text) is 'why the server cannot use the folder, or null where it can';

create or replace function rag.set(name text, value text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _definition record;
  _problem    text;
begin
  select * into _definition from rag._setting_definitions() d where d.name = set.name;
  if not found then
    raise exception 'there is no setting "%"', set.name
      using errcode = 'undefined_object',
            hint    = 'Settings are listed by: select name, description from rag.settings;';
  end if;
  if set.value is null then
    delete from rag._settings s where s.name = set.name;
    return _definition.default_value;
  end if;

  _problem := case _definition.kind
    when 'integer'  then rag._check_integer(set.value, _definition.minimum, _definition.maximum)
    when 'integers' then (select min(rag._check_integer(part, _definition.minimum, _definition.maximum))
                          from string_to_table(set.value, ',') part)
    when 'boolean'  then case when lower(set.value) not in ('on', 'off') then 'it is on or off' end
    when 'folder'   then rag._check_folder(set.value)
  end;
  if _problem is not null then
    raise exception 'invalid value for setting "%": "%"', set.name, set.value
      using errcode = 'invalid_parameter_value',
            detail  = _problem,
            hint    = format('%s. Its default: select rag.set(%L, null);', upper(left(_definition.description, 1)) || substr(_definition.description, 2), set.name);
  end if;

  insert into rag._settings (name, value)
  values (set.name, case _definition.kind when 'boolean' then lower(set.value) else set.value end)
  on conflict on constraint _settings_pkey do update
    set value = excluded.value, updated_at = excluded.updated_at, updated_by = excluded.updated_by;
  if set.name = 'document_root' then
    update rag.ingestion_queue q set run_at = now() where q.status = 'queued' and q.error_code = 'no_document_root';
  end if;
  return set.value;
end
$plpgsql$;
comment on function rag.set(text, text) is 'changes a setting (null: back to its default) and returns the value now in force; raises 42704 for an unknown name, 22023 for a value it cannot have';

create or replace function rag._check_integer(value text, minimum numeric, maximum numeric) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case
    when value !~ '^\s*\d{1,18}\s*$'                                 then 'it is a whole number'
    when value::numeric < minimum or value::numeric > maximum then format('it is from %s to %s', minimum, maximum)
  end
$sql$;
comment on function rag._check_integer(text, numeric, numeric) is 'why the text is no whole number in the range, or null where it is';
