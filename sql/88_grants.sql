-- Privileges of the four levels. They are data: rag.grant_usage() grants what the table lists, and
-- tests/privileges/test_matrix.py compares it with what roles can do.

create or replace function rag._privileges()
  returns table (level text, kind text, object text, privilege text, columns text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- search: find passages. The functions run with the caller's rights, so that row security on documents
  -- and chunks applies. So the private functions that they call must be granted too.
  select 'search', 'routine', f, 'execute', null
  from unnest(array[
    'search_documents', 'find_documents', 'embed', 'current_tenant',
    '_alternatives', '_analyze', '_asks_for_code', '_automatic_weight', '_bigrams', '_candidates', '_checked_embedding',
    '_checked_options', '_codes', '_column_type', '_context', '_dense_candidates', '_divided', '_embed_query',
    '_estimated_chunks', '_estimated_rows', '_exact_candidates', '_foreign_stop_words', '_fuse', '_has_vector_index', '_html',
    '_in_any_language', '_indexed_vector', '_language_code', '_language_configs', '_lexeme_index', '_lexeme_query', '_matches',
    '_normalized', '_overlap', '_oversampling', '_parsable', '_parse_query', '_parsed_question', '_partition', '_phrase',
    '_pipeline', '_query_lexemes', '_query_weights', '_question_embedding', '_rarest_lexemes', '_readable_in_source',
    '_rerank_scores', '_reranked', '_search', '_search_again', '_search_by_document', '_search_filter', '_search_hits',
    '_search_results', '_set_index_effort', '_share_of_best', '_snippet', '_text_candidates', '_text_condition',
    '_text_leg_candidates', '_text_search_configs', '_tied_tenants', '_type_name', '_vector_schema', '_without_accents',
    '_words_to_mark']) f
  union all
  select 'search', 'table', v.object, 'select', v.columns
  from (values
    ('document_chunks', null),
    ('documents',       'source_id, document_id, source_key, file_path, title, extracted, tenant_id, tags, language, metadata, updated_at'),
    ('sources',         null),
    ('pipelines',       null),
    ('models',          null)) v (object, columns)

  -- ingest: add documents to rag.uploads and remove them. Row security on rag.uploads applies.
  union all
  select 'ingest', 'routine', f, 'execute', null
  from unnest(array['add_document', 'remove_document', 'job', 'current_tenant', '_tied_tenants', '_open_uploads']) f
  union all
  select 'ingest', 'table', v.object, v.privilege, v.columns
  from (values
    ('uploads',         'insert', 'name, content, title, tenant_id, tags, language, metadata'),
    ('uploads',         'delete', null),
    ('uploads',         'select', 'upload_id, tenant_id'),
    ('ingestion_queue', 'select', null),
    ('job_history',     'select', null),
    -- The policies on jobs read these, see rag.enable_tenant_isolation().
    ('documents',       'select', 'source_id, document_id, tenant_id'),
    ('sources',         'select', 'source_id, name, relation'),
    ('pipelines',       'select', 'pipeline_id, name, state')) v (object, privilege, columns)

  -- operate: see everything except texts, and control jobs and workers.
  union all
  select 'operate', 'routine', f, 'execute', null
  from unnest(array['get', 'job', 'current_tenant', '_tied_tenants', 'start_workers', 'stop_workers', 'cleanup_orphaned_chunks', 'check',
                    'check_consistency', 'metrics', '_status', '_progress',
                    'retry', 'discard', 'cancel', 'prioritize', 'reembed', 'restore_version',
                    -- A view reads tables with its owner's rights, but calls functions with the caller's.
                    '_worker_is_alive', '_lock_class', '_setting_definitions', '_index_builds']) f
  union all
  select 'operate', 'table', t, 'select', null
  from unnest(array['documents', 'document_versions', 'ingestion_queue', 'job_history', 'models', 'pipelines', 'sources', 'workers',
                    '_changes', 'ingestion_log', 'status', 'progress', 'failures', 'dead_letters', 'pipeline_progress',
                    'index_progress', 'worker_activity', 'maintenance_log', 'query_cache', 'settings']) t

  -- admin: all of the above, and control sources, pipelines and settings.
  union all
  select 'admin', 'routine', f, 'execute', null
  from unnest(array['set', 'attach_source', 'detach_source', 'enqueue_existing', 'create_pipeline', 'activate_pipeline', 'resume_pipeline',
                    'drop_pipeline', 'set_ocr', '_set', 'defer_index', 'build_index', 'set_tenant_role', 'enable_tenant_isolation',
                    'disable_tenant_isolation', 'evaluate', 'ann_recall',
                    '_active_pipeline', '_column_type', '_dcg', '_require_column', '_require_judgements']) f
$sql$;
comment on function rag._privileges() is
  'the privileges of each level, which rag.grant_usage() grants; admin also has the privileges of the other levels';

create or replace function rag._level_privileges(level text)
  returns table (kind text, object text, privilege text, columns text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select distinct p.kind,
         case p.kind when 'routine' then r.oid::regprocedure::text else format('rag.%I', p.object) end,
         p.privilege, p.columns
    from rag._privileges() p
    left join pg_proc r on p.kind = 'routine' and r.pronamespace = 'rag'::regnamespace and r.proname = p.object
   where p.level = _level_privileges.level or _level_privileges.level = 'admin'
$sql$;
comment on function rag._level_privileges(text) is 'the privileges of one level, with each signature of a function';

create or replace function rag._require_grantee(role name, level text) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if level is null or level not in ('search', 'ingest', 'operate', 'admin') then
    raise exception 'there is no level %', coalesce(quote_ident(level), 'null')
      using errcode = 'invalid_parameter_value',
            hint    = 'level is ''search'', ''ingest'', ''operate'' or ''admin''; a role can be given several.';
  elsif lower(role) = 'public' then
    raise exception 'ragstone grants nothing to public'
      using errcode = 'invalid_grant_operation',
            hint    = 'Create a role for it: create role readers; select rag.grant_usage(''readers'', level => ''search'');'
                      ' then grant that role.';
  elsif not exists (select from pg_roles r where r.rolname = role) then
    raise exception 'there is no role %', coalesce(quote_ident(role), 'null')
      using errcode = 'undefined_object',
            hint    = 'Roles are listed by: \du. Type the name exactly as it is, without double quotes.';
  end if;
end
$plpgsql$;
comment on function rag._require_grantee(name, text) is 'raises 22023 for an unknown level, 0LP01 for public, 42704 for an unknown role';

create or replace function rag.grant_usage(role name, level text default 'search') returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _privilege record;
  _count     bigint := 0;
begin
  perform rag._require_grantee(grant_usage.role, grant_usage.level);
  execute format('grant usage on schema rag to %I', grant_usage.role);
  if not has_schema_privilege(grant_usage.role, rag._vector_schema(), 'usage') then
    execute format('grant usage on schema %I to %I', rag._vector_schema(), grant_usage.role);
  end if;
  for _privilege in select * from rag._level_privileges(grant_usage.level) loop
    execute format('grant %s%s on %s %s to %I', _privilege.privilege, ' (' || _privilege.columns || ')',
                   _privilege.kind, _privilege.object, grant_usage.role);
    _count := _count + 1;
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag.grant_usage(name, text) is
  'lets a role use ragstone, at the level search (find passages), ingest (add and remove documents), operate (see and control jobs and'
  ' workers) or admin (all of these, and settings, sources and pipelines). A role can have several levels. Repeat it after an update, which'
  ' may bring new functions. Returns the number of privileges. Raises 42704 for an unknown role, 22023 for an unknown level, 0LP01 for'
  ' public';

create or replace function rag.revoke_usage(role name) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _object record;
begin
  perform rag._require_grantee(revoke_usage.role, 'search');
  -- All objects, whichever version granted them, and partitions, in case somebody granted those by hand.
  for _object in
    select case when c.relkind = 'S' then 'sequence' else 'table' end as kind, c.oid::regclass::text as name
    from pg_class c where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
    union all
    select 'routine', p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'rag'::regnamespace
    union all
    select 'schema', 'rag'
  loop
    execute format('revoke all on %s %s from %I', _object.kind, _object.name, revoke_usage.role);
  end loop;
end
$plpgsql$;
comment on function rag.revoke_usage(name) is
  'revokes all privileges on ragstone''s objects from a role; roles that it is a member of keep theirs. Raises 42704 for an unknown role';

create or replace view rag.usage_grants as
  select r.rolname as role, l.level, count(*) filter (where not g.granted) as missing
    from pg_catalog.pg_roles r
   cross join lateral (values ('search', 'search_documents'), ('ingest', 'add_document'),
                              ('operate', 'start_workers'), ('admin', 'set')) l (level, mark)
   cross join lateral rag._level_privileges(l.level) p
   cross join lateral (select case
           when p.kind = 'routine' then pg_catalog.has_function_privilege(r.oid, p.object, p.privilege)
           when p.columns is null   then pg_catalog.has_table_privilege(r.oid, p.object, p.privilege)
           else (select pg_catalog.bool_and(pg_catalog.has_column_privilege(r.oid, p.object, pg_catalog.btrim(c), p.privilege))
                 from pg_catalog.string_to_table(p.columns, ',') c)
         end as granted) g
   where exists (select from pg_catalog.pg_proc f, pg_catalog.aclexplode(f.proacl) a
                 where f.pronamespace = 'rag'::pg_catalog.regnamespace and f.proname = l.mark and a.grantee = r.oid
                   and a.grantee <> f.proowner)
     and (l.level = 'admin'
          or not exists (select from pg_catalog.pg_proc f, pg_catalog.aclexplode(f.proacl) a
                         where f.pronamespace = 'rag'::pg_catalog.regnamespace and f.proname = 'set' and a.grantee = r.oid
                           and a.grantee <> f.proowner))
   group by r.rolname, l.level
   order by r.rolname, l.level;
comment on view rag.usage_grants is
  'roles that have a level by rag.grant_usage(), and how many privileges of that level each lacks, as can happen after an update';
