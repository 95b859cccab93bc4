-- Settings: their definitions, who may change them, and what a tenant has.

create or replace function rag._setting_definitions()
  returns table (name text, kind text, default_value text, minimum numeric, maximum numeric, unit text, per_tenant boolean,
                 description text)
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Each description continues the sentence "name is …", which is the hint about an invalid value.
  values
    ('document_root', 'folder', null, null, null, null, false,
     'the only folder from which document files are read'),
    ('allowed_types', 'types', '*', null, null, null, true,
     'the list of mime types that are accepted, such as application/pdf,text/*; * accepts every type that can be read'),
    ('max_file_bytes', 'integer', '50000000', 1, 1e9, 'bytes', true,
     'the largest size of a document, in bytes'),
    ('max_inflated_bytes', 'integer', '200000000', 1, 1e10, 'bytes', true,
     'the largest size to which a compressed document may unpack, in bytes'),
    ('max_pages', 'integer', '2000', 1, 1e6, 'pages', true,
     'the largest number of pages, slides or sheets of one document'),
    ('max_text_characters', 'integer', '10000000', 1000, 1e8, 'characters', true,
     'the largest amount of text of one document, in characters'),
    ('max_chunks', 'integer', '50000', 1, 1e6, 'chunks', true,
     'the largest number of chunks of one document'),
    ('max_tenant_documents', 'integer', null, 0, 1e12, 'documents', true,
     'the largest number of documents of one tenant; null means no limit'),
    ('max_tenant_bytes', 'integer', null, 0, 1e15, 'bytes', true,
     'the largest total size of one tenant''s documents, in bytes; null means no limit'),
    ('max_tenant_chunks_per_day', 'integer', null, 0, 1e12, 'chunks', true,
     'the largest number of chunks made for one tenant within 24 hours; null means no limit'),
    ('extraction_memory_bytes', 'integer', '536870912', 134217728, 1e11, 'bytes', false,
     'the largest address space of the child process that reads documents, in bytes'),
    ('extraction_cpu_s', 'integer', '60', 1, 86400, 's', true,
     'the longest CPU time for reading one document, in seconds'),
    ('extraction_wall_s', 'integer', '120', 1, 86400, 's', true,
     'the longest elapsed time for reading one document, in seconds'),
    ('ocr_page_s', 'integer', '20', 1, 3600, 's', true,
     'the longest time for recognising one page where OCR is on, in seconds; a page that takes longer is left out'),
    ('ocr_document_s', 'integer', '1800', 1, 86400, 's', true,
     'the longest time for recognising all pages of one document, in seconds; the remaining pages are left out'),
    ('max_attempts', 'integer', '5', 1, 100, 'attempts', false,
     'the number of attempts after which a job is dead'),
    ('retry_delays_s', 'integers', '30,120,300,900,3600', 0, 1e6, 's', false,
     'the list of waits before each further attempt, in seconds; the last one repeats'),
    ('claim_documents', 'integer', '16', 1, 1000, 'documents', false,
     'the largest number of documents that a worker claims at once'),
    ('poll_interval_ms', 'integer', '250', 10, 60000, 'ms', false,
     'the interval at which an idle worker looks for work, in milliseconds'),
    ('worker_lifetime_s', 'integer', '120', 1, 86400, 's', false,
     'the time after which a worker started by pg_cron ends, in seconds; pg_cron then starts the next one'),
    ('retain_versions', 'integer', '1', 0, 1000, 'versions', false,
     'the number of superseded versions of a document whose chunks are kept for rag.restore_version()'),
    ('version_history_days', 'integer', '90', 0, 36500, 'days', false,
     'the number of days for which failed versions, and superseded versions without chunks, are listed'),
    ('workers_paused', 'boolean', 'off', null, null, null, false,
     'a switch; while it is on, workers take no new documents'),
    ('worker_max_documents', 'integer', '10000', 0, 1e9, 'documents', false,
     'the number of documents after which a worker started by pg_cron ends; 0 means no limit'),
    ('worker_max_memory_bytes', 'integer', '2147483648', 0, 1e13, 'bytes', false,
     'the private memory of a worker and its child processes, in bytes, above which a worker started by pg_cron ends;'
      ' 0 means no limit'),
    ('min_available_memory_bytes', 'integer', '268435456', 0, 1e13, 'bytes', false,
     'the available memory of the machine, in bytes, below which workers take no new documents'),
    ('job_time_limit_s', 'integer', '3600', 1, 1e6, 's', false,
     'the longest time for one attempt at a document, all stages together, in seconds'),
    ('model_idle_s', 'integer', '60', 0, 86400, 's', false,
     'the time after which an idle worker ends its child processes and so unloads the model, in seconds'),
    ('job_history_days', 'integer', '30', 0, 36500, 'days', false,
     'the number of days for which finished jobs can be looked up'),
    ('query_cache_entries', 'integer', '10000', 0, 1e7, 'queries', false,
     'the largest number of query embeddings that are kept'),
    ('query_cache_days', 'integer', '30', 0, 36500, 'days', false,
     'the number of days after which an unused query embedding is dropped'),
    ('log_min_duration_ms', 'integer', null, 0, 1e9, 'ms', false,
     'the processing time from which a document is reported in the server''s log, in milliseconds; failed documents are'
      ' reported too; 0 means all documents, null means none'),
    ('status_notifications', 'boolean', 'off', null, null, null, false,
     'a switch; while it is on, each job that ends is announced on the channel document_status'),
    ('notifications', 'boolean', 'off', null, null, null, false,
     'a switch; while it is on, each document that changes is announced on the channel document_changes, and a transaction that'
     ' deletes rows cannot be prepared (two-phase commit)')
$sql$;

create or replace view rag.settings as
  select d.name, t.tenant_id, coalesce(s.value, d.default_value) as value, d.unit, d.default_value,
         s.name is not null as changed, d.description
  from rag._setting_definitions() d
  cross join lateral (
    select null::bigint as tenant_id
    union all
    select o.tenant_id from rag._settings o where o.name = d.name and o.tenant_id is not null
  ) t
  left join rag._settings s on s.name = d.name and s.tenant_id is not distinct from t.tenant_id;
comment on view rag.settings is
  'all settings with value, unit, default and meaning, and the values that differ for one tenant; change one with rag.set(name, value)';

create or replace function rag._definition(
    name text, tenant_id bigint,
    out kind text, out default_value text, out minimum numeric, out maximum numeric, out description text)
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
  'the definition of a setting; raises 42704 for an unknown name, 22023 if a tenant is given and the setting is the same for all tenants';

create or replace function rag._caller() returns name
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select case current_setting('role') when 'none' then session_user else current_setting('role')::name end $sql$;
comment on function rag._caller() is 'the role that calls, also within a function that runs with the rights of its owner';

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
comment on function rag.get(text, bigint) is 'value of a setting, for one tenant if one is given; raises 42704 for an unknown name';

create or replace function rag._folder_hint(path text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
  set standard_conforming_strings = 'on'
as $sql$
  select format('Type as root: namei -l %s; it shows who may enter each folder. The server''s account must be able to enter all'
                ' of them and to read the last one. Or choose another: select rag.set(''document_root'', ''/folder/of/the/documents'');',
                '''' || replace(path, '''', '''\''''') || '''')
$sql$;
comment on function rag._folder_hint(text) is 'a hint: how to find out why the server cannot use the folder';

create or replace function rag._keep_setting() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- pg_restore loads the dumped settings where some may have been made already, for this very server: these stay. Without
  -- this, the first one would be an error that takes all settings of the dump with it.
  if exists (select from rag._settings s where s.name = new.name and s.tenant_id is not distinct from new.tenant_id) then
    return null;
  end if;
  return new;
end
$plpgsql$;

create or replace trigger keep_setting before insert on rag._settings
  for each row execute function rag._keep_setting();

create or replace function rag._store_setting(name text, value text, tenant_id bigint) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _definition record := rag._definition(_store_setting.name, _store_setting.tenant_id);
  _problem    text;
  _hint       text;
  _value      text;
begin
  if _store_setting.value is null then
    delete from rag._settings s where s.name = _store_setting.name and s.tenant_id is not distinct from _store_setting.tenant_id;
    return rag.get(_store_setting.name, _store_setting.tenant_id);
  end if;

  _problem := case _definition.kind
    when 'integer'  then rag._integer_problem(_store_setting.value, _definition.minimum, _definition.maximum)
    when 'integers' then (select min(rag._integer_problem(part, _definition.minimum, _definition.maximum))
                          from string_to_table(_store_setting.value, ',') part)
    when 'boolean'  then case when lower(_store_setting.value) not in ('on', 'off') then 'the value must be on or off' end
    when 'types'    then case when _store_setting.value !~ '^(\*|[a-z]+/[a-z0-9.+*-]+)(,(\*|[a-z]+/[a-z0-9.+*-]+))*$'
                              then 'the value must be a list of mime types, separated by commas, without spaces' end
  end;
  _hint := format('%s is %s. To return to the default, type: select rag.set(%L, null);',
                  _store_setting.name, _definition.description, _store_setting.name);
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

  _value := case _definition.kind when 'boolean' then lower(_store_setting.value) else _store_setting.value end;
  -- Not by an insert alone: rag._keep_setting() would take it for a restore.
  loop
    update rag._settings s
       set value = _value, updated_at = now(), updated_by = rag._caller()
     where s.name = _store_setting.name and s.tenant_id is not distinct from _store_setting.tenant_id;
    exit when found;
    insert into rag._settings (name, tenant_id, value, updated_by)
    values (_store_setting.name, _store_setting.tenant_id, _value, rag._caller())
    on conflict on constraint one_value_a_tenant do nothing;
    exit when found;
  end loop;
  return _store_setting.value;
end
$plpgsql$;
comment on function rag._store_setting(text, text, bigint) is
  'checks and stores the value of a setting (null: removes it), and returns the value now in force';

create or replace function rag._set(name text, value text, tenant_id bigint) returns text
  language plpgsql
  -- SECURITY DEFINER: a role that may change settings can neither store an unchecked value nor ask
  -- Python about folders.
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
comment on function rag._set(text, text, bigint) is 'rag.set() for all settings except the document root';

create or replace function rag._set_document_root(value text, tenant_id bigint) returns text
  language plpgsql
  -- SECURITY DEFINER: as for rag._set(). No level may execute it, only roles that may read the server's files.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag._store_setting('document_root', _set_document_root.value, _set_document_root.tenant_id);
  perform rag.retry(error_code => e) from unnest(array['no_document_root', 'root_missing', 'root_unfit']) e;
  return _set_document_root.value;
end
$plpgsql$;
comment on function rag._set_document_root(text, bigint) is 'rag.set() for the document root';

-- PostgreSQL checks this privilege for the calling role. A security definer function could not check the
-- caller itself: a superuser's session may run code of another role, in an index or a trigger.
grant execute on function rag._set_document_root(text, bigint) to pg_read_server_files;

create or replace function rag.set(name text, value text, tenant_id bigint default null) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if set.name is distinct from 'document_root' then
    return rag._set(set.name, set.value, set.tenant_id);
  elsif not has_function_privilege('rag._set_document_root(text, bigint)', 'execute') then
    raise exception 'only roles that may read the server''s files can set the document root'
      using errcode = 'insufficient_privilege',
            detail  = 'Every file below it that the server''s account can read can be found by searching.',
            hint    = format('Ask a superuser to set it, or to type: grant pg_read_server_files to %I;', current_user);
  end if;
  return rag._set_document_root(set.value, set.tenant_id);
end
$plpgsql$;
comment on function rag.set(text, text, bigint) is
  'changes a setting, for all or for one tenant, and returns the value now in force; null as the value removes the change. Raises 42704'
  ' for an unknown name, 22023 for an invalid value, 42501 for the document root without pg_read_server_files';

create or replace function rag._integer_problem(value text, minimum numeric, maximum numeric) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case
    when value !~ '^[[:space:]]*[0-9]{1,18}[[:space:]]*$' then 'the value must be a whole number'
    when value::numeric < minimum or value::numeric > maximum then format('the value must be from %s to %s', minimum, maximum)
  end
$sql$;
comment on function rag._integer_problem(text, numeric, numeric) is 'why the text is not a whole number in the range; null if it is one';

create or replace function rag._settings_of(tenant_id bigint) returns table (name text, value text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select d.name, coalesce(t.value, g.value, d.default_value)
  from rag._setting_definitions() d
  left join rag._settings g on g.name = d.name and g.tenant_id is null
  left join rag._settings t on t.name = d.name and t.tenant_id = _settings_of.tenant_id
$sql$;
comment on function rag._settings_of(bigint) is 'all settings with the values that a tenant has (null: the values for everybody)';
