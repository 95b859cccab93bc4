-- Settings: their definitions, who may change them, and what a tenant has.

create or replace function rag._setting_definitions()
  returns table (name text, kind text, default_value text, minimum numeric, maximum numeric, unit text, per_tenant boolean, description text)
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    ('document_root',            'folder',   null,         null, null,      null,         false, 'the only folder from which document files are read'),
    ('allowed_types',            'types',    '*',          null, null,      null,         true,  'mime types that are taken in, such as application/pdf,text/*; * is all that can be read'),
    ('max_file_bytes',           'integer',  '50000000',   1,    1e9,       'bytes',      true,  'largest document that is read'),
    ('max_inflated_bytes',       'integer',  '200000000',  1,    1e10,      'bytes',      true,  'most that a compressed document may unpack to'),
    ('max_pages',                'integer',  '2000',       1,    1e6,       'pages',      true,  'most pages, slides or sheets of one document'),
    ('max_text_characters',      'integer',  '10000000',   1000, 1e8,       'characters', true,  'most text of one document'),
    ('max_chunks',               'integer',  '50000',      1,    1e6,       'chunks',     true,  'most chunks of one document'),
    ('max_tenant_documents',     'integer',  null,         0,    1e12,      'documents',  true,  'most documents of one tenant'),
    ('max_tenant_bytes',         'integer',  null,         0,    1e15,      'bytes',      true,  'most bytes of one tenant''s documents together'),
    ('max_tenant_chunks_per_day','integer',  null,         0,    1e12,      'chunks',     true,  'most chunks made for one tenant within 24 hours'),
    ('extraction_memory_bytes',  'integer',  '536870912',  134217728, 1e11, 'bytes',      false, 'address space of the extraction child'),
    ('extraction_cpu_s',         'integer',  '60',         1,    86400,     's',          true,  'CPU time for extracting one document'),
    ('extraction_wall_s',        'integer',  '120',        1,    86400,     's',          true,  'wall time for extracting one document'),
    ('ocr_page_s',               'integer',  '20',         1,    3600,      's',          true,  'longest that recognising one page may take, where OCR is on; a page over it is left out'),
    ('ocr_document_s',           'integer',  '1800',       1,    86400,     's',          true,  'longest that recognising all pages of one document may take; those after it are left out'),
    ('max_attempts',             'integer',  '5',          1,    100,       'attempts',   false, 'attempts before a job is dead'),
    ('retry_delays_s',           'integers', '30,120,300,900,3600', 0, 1e6, 's',          false, 'wait before each further attempt; the last one repeats'),
    ('claim_documents',          'integer',  '16',         1,    1000,      'documents',  false, 'most documents a worker claims at once'),
    ('poll_interval_ms',         'integer',  '250',        10,   60000,     'ms',         false, 'how often an idle worker looks for work'),
    ('worker_lifetime_s',        'integer',  '120',        1,    86400,     's',          false, 'a worker started by pg_cron ends after this long, and pg_cron starts the next'),
    ('retain_versions',          'integer',  '1',          0,    1000,      'versions',   false, 'superseded versions of a document whose chunks are kept for rag.restore_version()'),
    ('version_history_days',     'integer',  '90',         0,    36500,     'days',       false, 'how long failed and superseded versions without chunks are listed'),
    ('workers_paused',           'boolean',  'off',        null, null,      null,         false, 'on: workers take no new documents until it is off again'),
    ('worker_max_documents',     'integer',  '10000',      0,    1e9,       'documents',  false, 'a worker started by pg_cron ends after so many documents, 0: never'),
    ('worker_max_memory_bytes',  'integer',  '2147483648', 0,    1e13,      'bytes',      false, 'a worker started by pg_cron ends when it holds more private memory, its child processes included; 0: never'),
    ('min_available_memory_bytes','integer', '268435456',  0,    1e13,      'bytes',      false, 'workers take no new documents while the machine has less memory available'),
    ('job_time_limit_s',         'integer',  '3600',       1,    1e6,       's',          false, 'longest that one attempt at a document may take, all stages together'),
    ('model_idle_s',             'integer',  '60',         0,    86400,     's',          false, 'an idle worker ends its child processes, and with them the model, after this long'),
    ('job_history_days',         'integer',  '30',         0,    36500,     'days',       false, 'how long finished jobs can be looked up'),
    ('query_cache_entries',      'integer',  '10000',      0,    1e7,       'queries',    false, 'most query embeddings kept'),
    ('query_cache_days',         'integer',  '30',         0,    36500,     'days',       false, 'unused query embeddings are dropped after this long'),
    ('log_min_duration_ms',      'integer',  null,         0,    1e9,       'ms',         false, 'documents that take at least so long, and all that fail, leave a line in the server''s log; 0: all, null: none'),
    ('status_notifications',     'boolean',  'off',        null, null,      null,         false, 'notify channel document_status of every job that ends'),
    ('notifications',            'boolean',  'off',        null, null,      null,         false, 'notify channel document_changes of every changed document')
$sql$;

create or replace view rag.settings as
  select d.name, t.tenant_id, coalesce(s.value, d.default_value) as value, d.unit, d.default_value, s.name is not null as changed, d.description
  from rag._setting_definitions() d
  cross join lateral (
    select null::bigint as tenant_id
    union all
    select o.tenant_id from rag._settings o where o.name = d.name and o.tenant_id is not null
  ) t
  left join rag._settings s on s.name = d.name and s.tenant_id is not distinct from t.tenant_id;
comment on view rag.settings is
  'all settings with value, unit, default and meaning, and those that one tenant has otherwise; change one with rag.set(name, value)';

create or replace function rag._definition(name text, tenant_id bigint, out kind text, out default_value text, out minimum numeric, out maximum numeric, out description text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _per_tenant boolean;
begin
  select d.kind, d.default_value, d.minimum, d.maximum, d.description, d.per_tenant
    into kind, default_value, minimum, maximum, description, _per_tenant
    from rag._setting_definitions() d
   where d.name = _definition.name;
  if not found then
    raise exception 'there is no setting "%"', _definition.name
      using errcode = 'undefined_object',
            hint    = 'Settings are listed by: select name, description from rag.settings;';
  elsif tenant_id is not null and not _per_tenant then
    raise exception 'setting "%" is the same for all tenants', _definition.name
      using errcode = 'invalid_parameter_value',
            hint    = format('Leave tenant_id out: select rag.set(%L, …);', _definition.name);
  end if;
end
$plpgsql$;
comment on function rag._definition(text, bigint) is
  'what a setting is; raises 42704 for a name that is none, 22023 for a tenant''s where tenants have none';

create or replace function rag._caller() returns name
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select case current_setting('role') when 'none' then session_user else current_setting('role')::name end $sql$;
comment on function rag._caller() is 'who is asking, within a function that runs with the rights of its owner';

create or replace function rag.get(name text, tenant_id bigint default null) returns text
  language plpgsql stable
  -- SECURITY DEFINER: the table of settings is closed, so that it is written through rag.set() alone.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _default text := (rag._definition(get.name, get.tenant_id)).default_value;
begin
  return coalesce(
    (select s.value from rag._settings s where s.name = get.name and s.tenant_id = get.tenant_id),
    (select s.value from rag._settings s where s.name = get.name and s.tenant_id is null),
    _default);
end
$plpgsql$;
comment on function rag.get(text, bigint) is 'value of a setting, for one tenant where that is given; raises 42704 for a name that is none';

create or replace function rag._folder_hint(path text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select format('As root: namei -l %s; shows who may enter each folder. The server''s account must be let into all of them, and read the last. Or choose another: select rag.set(''document_root'', ''/folder/of/the/documents'');',
                '''' || replace(path, '''', '''\''''') || '''')
$sql$;
comment on function rag._folder_hint(text) is 'how to find out why the server cannot use the folder';

create or replace function rag._store_setting(name text, value text, tenant_id bigint) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _definition record := rag._definition(_store_setting.name, _store_setting.tenant_id);
  _problem    text;
  _hint       text;
begin
  if _store_setting.value is null then
    delete from rag._settings s where s.name = _store_setting.name and s.tenant_id is not distinct from _store_setting.tenant_id;
    return rag.get(_store_setting.name, _store_setting.tenant_id);
  end if;

  _problem := case _definition.kind
    when 'integer'  then rag._integer_problem(_store_setting.value, _definition.minimum, _definition.maximum)
    when 'integers' then (select min(rag._integer_problem(part, _definition.minimum, _definition.maximum))
                          from string_to_table(_store_setting.value, ',') part)
    when 'boolean'  then case when lower(_store_setting.value) not in ('on', 'off') then 'it is on or off' end
    when 'types'    then case when _store_setting.value !~ '^(\*|[a-z]+/[a-z0-9.+*-]+)(,(\*|[a-z]+/[a-z0-9.+*-]+))*$'
                              then 'it is a list of mime types with commas between and no spaces' end
  end;
  _hint := format('It is %s. Back to its default: select rag.set(%L, null);', _definition.description, _store_setting.name);
  if _definition.kind = 'folder' then
    select p.problem, coalesce(p.hint, rag._folder_hint(_store_setting.value)) into _problem, _hint
      from rag._folder_problem(_store_setting.value) p;
  end if;
  if _problem is not null then
    raise exception 'invalid value for setting "%": "%"', _store_setting.name, _store_setting.value
      using errcode = 'invalid_parameter_value',
            detail  = _problem,
            hint    = _hint;
  end if;

  insert into rag._settings (name, tenant_id, value, updated_by)
  values (_store_setting.name, _store_setting.tenant_id,
          case _definition.kind when 'boolean' then lower(_store_setting.value) else _store_setting.value end, rag._caller())
  on conflict on constraint one_value_a_tenant do update
    set value = excluded.value, updated_at = excluded.updated_at, updated_by = excluded.updated_by;
  return _store_setting.value;
end
$plpgsql$;
comment on function rag._store_setting(text, text, bigint) is
  'checks and keeps the value of a setting (null: forgets it), and returns the value now in force';

create or replace function rag._set(name text, value text, tenant_id bigint) returns text
  language plpgsql
  -- SECURITY DEFINER: whoever may change settings can neither store a value that was not checked, nor
  -- ask Python about folders.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if _set.name = 'document_root' then
    raise exception 'the document root is set by rag.set()' using errcode = 'insufficient_privilege';
  end if;
  return rag._store_setting(_set.name, _set.value, _set.tenant_id);
end
$plpgsql$;
comment on function rag._set(text, text, bigint) is 'rag.set() of all but the document root';

create or replace function rag._set_document_root(value text, tenant_id bigint) returns text
  language plpgsql
  -- SECURITY DEFINER: as for rag._set(). No level has it: whoever may read the server's files does.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag._store_setting('document_root', _set_document_root.value, _set_document_root.tenant_id);
  perform rag.retry(error_code => e) from unnest(array['no_document_root', 'root_missing', 'root_unfit']) e;
  return _set_document_root.value;
end
$plpgsql$;
comment on function rag._set_document_root(text, bigint) is 'rag.set() of the document root';

-- The server itself asks who calls: within a function with other rights nobody can tell. A superuser's
-- session may be running code of somebody else, as an index or a trigger has some.
grant execute on function rag._set_document_root(text, bigint) to pg_read_server_files;

create or replace function rag.set(name text, value text, tenant_id bigint default null) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if set.name is distinct from 'document_root' then
    return rag._set(set.name, set.value, set.tenant_id);
  elsif not has_function_privilege('rag._set_document_root(text, bigint)', 'execute') then
    raise exception 'setting the document root is for those who may read the server''s files'
      using errcode = 'insufficient_privilege',
            detail  = 'Every file below it that the server''s account can read can be found by searching.',
            hint    = format('Have a superuser set it, or type as one: grant pg_read_server_files to %I;', current_user);
  end if;
  return rag._set_document_root(set.value, set.tenant_id);
end
$plpgsql$;
comment on function rag.set(text, text, bigint) is
  'changes a setting, for all or for one tenant (value null: back to what it was without), and returns the value now in force; raises'
  ' 42704 for an unknown name, 22023 for a value it cannot have, 42501 for the document root without pg_read_server_files';

create or replace function rag._integer_problem(value text, minimum numeric, maximum numeric) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case
    when value !~ '^\s*\d{1,18}\s*$'                                 then 'it is a whole number'
    when value::numeric < minimum or value::numeric > maximum then format('it is from %s to %s', minimum, maximum)
  end
$sql$;
comment on function rag._integer_problem(text, numeric, numeric) is 'why the text is no whole number in the range, or null where it is';

create or replace function rag._settings_of(tenant_id bigint) returns table (name text, value text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select d.name, coalesce(t.value, g.value, d.default_value)
  from rag._setting_definitions() d
  left join rag._settings g on g.name = d.name and g.tenant_id is null
  left join rag._settings t on t.name = d.name and t.tenant_id = _settings_of.tenant_id
$sql$;
comment on function rag._settings_of(bigint) is 'all settings as they are for a tenant (null: for everybody)';
