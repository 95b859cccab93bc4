-- What needs a superuser or the extension mechanism: a managed server does without it.

-- pgvector and PL/Python are required by the control file. pg_cron cannot be: it lives in one database
-- of a cluster, ragstone in any.
do $do$
begin
  -- Not current_setting(): that also knows what postgresql.conf says to a library that is not loaded.
  if not exists (select from pg_settings s where s.name = 'cron.database_name')
     and coalesce(current_setting('ragstone.without_pg_cron', true), 'off') <> 'on' then
    raise exception 'pg_cron is not loaded'
      using errcode = 'object_not_in_prerequisite_state',
            detail  = 'It starts the workers that process documents.',
            hint    = format('Install the package postgresql-%s-cron, put into postgresql.conf: shared_preload_libraries = ''pg_cron'','
                             ' cron.database_name = %L, cron.use_background_workers = on; and restart the server. To do without, and work'
                             ' the queue off by hand with call rag.drain(), first type: set ragstone.without_pg_cron = on;',
                             current_setting('server_version_num')::integer / 10000, current_database());
  end if;
end
$do$;

-- The core's @@ is not marked leakproof, and behind row security only leakproof conditions go to an index:
-- every search by a tenant would unpack all of its chunks. This is the same function under a mark of
-- ours; it raises nothing that depends on the text that is looked at.
create function rag._matches(content_tsv tsvector, condition tsquery) returns boolean
  language internal immutable strict leakproof parallel safe cost 2
  as 'ts_match_vq';
comment on function rag._matches(tsvector, tsquery) is 'what @@ is, for an index that row security lets be used';

create operator rag.@@ (
  function = rag._matches, leftarg = tsvector, rightarg = tsquery, restrict = tsmatchsel, join = tsmatchjoinsel
);
comment on operator rag.@@ (tsvector, tsquery) is 'what @@ is, for an index that row security lets be used';

create operator class rag.tsvector_ops for type tsvector using gin as
  operator 1 rag.@@ (tsvector, tsquery),
  function 1 gin_cmp_tslexeme (text, text),
  function 2 gin_extract_tsvector (tsvector, internal, internal),
  function 3 gin_extract_tsquery (tsvector, internal, smallint, internal, internal, internal, internal),
  function 4 gin_tsquery_consistent (internal, smallint, tsvector, integer, internal, internal, internal, internal),
  function 5 gin_cmp_prefix (text, text, smallint, internal),
  function 6 gin_tsquery_triconsistent (internal, smallint, tsvector, integer, internal, internal, internal),
  storage text;

------------------------------------------------------------------------------------------------
-- Dump and restore: the rows below are the user's. Partitions dump themselves; workers and the
-- query cache are of no use elsewhere; the built-in model is a fact of each installation.
------------------------------------------------------------------------------------------------

select pg_catalog.pg_extension_config_dump('rag._settings', '');
select pg_catalog.pg_extension_config_dump('rag.models', 'where not builtin');
select pg_catalog.pg_extension_config_dump('rag.pipelines', '');
select pg_catalog.pg_extension_config_dump('rag.pipelines_pipeline_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag.sources', '');
select pg_catalog.pg_extension_config_dump('rag.sources_source_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag._generation_seq', '');
select pg_catalog.pg_extension_config_dump('rag._document_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag.documents', '');
select pg_catalog.pg_extension_config_dump('rag.uploads', '');
select pg_catalog.pg_extension_config_dump('rag.uploads_upload_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag.document_versions', '');
select pg_catalog.pg_extension_config_dump('rag.document_versions_version_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag._retained_chunks', '');
select pg_catalog.pg_extension_config_dump('rag._pipeline_fill', '');
select pg_catalog.pg_extension_config_dump('rag._chunk_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag._changes', '');
select pg_catalog.pg_extension_config_dump('rag._changes_change_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag.ingestion_queue', '');
select pg_catalog.pg_extension_config_dump('rag.ingestion_queue_job_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag.job_history', '');
select pg_catalog.pg_extension_config_dump('rag._worker_id_seq', '');
select pg_catalog.pg_extension_config_dump('rag._lexeme_changes', '');
select pg_catalog.pg_extension_config_dump('rag._lexemes', '');
select pg_catalog.pg_extension_config_dump('rag._pipeline_statistics', '');
select pg_catalog.pg_extension_config_dump('rag._background', '');
select pg_catalog.pg_extension_config_dump('rag._tenant_roles', '');
