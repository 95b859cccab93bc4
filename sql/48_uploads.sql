-- Documents without a table of the user's: rag.uploads, attached like any source at its first use.

create or replace function rag._follow_uploads() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
begin
  select * into _source from rag.sources s
   where s.relation = 'rag.uploads'::regclass
     and not exists (select from rag._triggers(s.source_id));
  if found then
    lock table rag.uploads in share row exclusive mode;
    perform rag._make_triggers(_source.source_id, _source.relation);
    -- What came or went meanwhile.
    perform rag._record_changes(_source.source_id, u.keys, 0::smallint)
    from (select array_agg(u.upload_id::text) as keys from rag.uploads u
          where not exists (select from rag.documents d
                            where d.source_id = _source.source_id and d.document_id = u.upload_id)) u
    where u.keys is not null;
    perform rag._delete_documents(_source.source_id, array(
      select d.source_key from rag.documents d
      where d.source_id = _source.source_id and not exists (select from rag.uploads u where u.upload_id = d.document_id)));
  end if;
end
$plpgsql$;
comment on function rag._follow_uploads() is
  'makes the triggers of rag.uploads anew: pg_dump leaves them out, as it does with all triggers on tables of an extension';

create or replace function rag._open_uploads(tenant_id bigint) returns bigint
  language plpgsql
  -- SECURITY DEFINER: whoever adds documents can neither attach tables nor read other settings.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag.attach_source('rag.uploads', content_column => 'content', name_column => 'name', title_column => 'title',
                            tenant_column => 'tenant_id', tags_column => 'tags', language_column => 'language',
                            metadata_columns => '{metadata}', name => 'uploads')
   where not exists (select from rag.sources s where s.relation = 'rag.uploads'::regclass);
  perform rag._follow_uploads();
  return rag.get('max_file_bytes', _open_uploads.tenant_id)::bigint;
end
$plpgsql$;
comment on function rag._open_uploads(bigint) is
  'attaches rag.uploads at its first use, and again after a restore; returns max_file_bytes of the tenant';

create or replace function rag.add_document(
    name      text,
    content   bytea,
    title     text   default null,
    tenant_id bigint default null,
    tags      text[] default null,
    language  text   default null,
    metadata  jsonb  default '{}')
  returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _upload_id bigint;
  _limit     bigint := rag._open_uploads(add_document.tenant_id);
begin
  if coalesce(add_document.name, '') = '' or add_document.content is null then
    raise exception 'a document has a name and a content'
      using errcode = 'null_value_not_allowed',
            hint    = 'Type: select rag.add_document(name => ''report.pdf'', content => …);';
  elsif length(add_document.content) > _limit then
    raise exception 'the document has % bytes, more than max_file_bytes, which is %', length(add_document.content), _limit
      using errcode = 'program_limit_exceeded',
            hint    = 'Split the document, or raise the limit: select rag.set(''max_file_bytes'', …);';
  elsif jsonb_typeof(add_document.metadata) <> 'object' then
    raise exception 'metadata is a JSON object, not %', jsonb_typeof(add_document.metadata)
      using errcode = 'invalid_parameter_value',
            hint    = 'Such as: metadata => ''{"author": "…"}''';
  end if;

  insert into rag.uploads (name, content, title, tenant_id, tags, language, metadata)
  values (add_document.name, add_document.content, add_document.title, add_document.tenant_id, add_document.tags,
          add_document.language, coalesce(add_document.metadata, '{}'))
  returning upload_id into _upload_id;
  return (
    select q.job_id
    from rag.ingestion_queue q
    join rag.sources s on s.source_id = q.source_id
    join rag.pipelines p on p.pipeline_id = q.pipeline_id
    where s.relation = 'rag.uploads'::regclass and q.document_id = _upload_id and q.status <> 'running'
      and p.state = 'active');
end
$plpgsql$;
comment on function rag.add_document(text, bytea, text, bigint, text[], text, jsonb) is
  'stores a document in rag.uploads and returns the job that makes it searchable; its document_id: select document_id from rag.job(…).'
  ' name is a file name; a text is given as convert_to(…, ''UTF8''). Raises 22004 without name or content, 54000 over max_file_bytes,'
  ' 22023 for metadata that is no object';

create or replace function rag.remove_document(document_id bigint) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag._open_uploads(null);
  delete from rag.uploads u where u.upload_id = remove_document.document_id;
  return found;
end
$plpgsql$;
comment on function rag.remove_document(bigint) is
  'takes a document of rag.add_document() away, out of search at once; false where there is none of that id';
