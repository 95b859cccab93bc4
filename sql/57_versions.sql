-- Versions of a document: what was searched before can be brought back.

create or replace function rag._retire_version(source_id integer, document_id bigint, pipeline_id integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _version_id bigint;
  _keep       boolean := rag.get('retain_versions')::integer > 0;
begin
  update rag.document_versions v
     set state = 'superseded', restorable = _keep
   where v.source_id = _retire_version.source_id and v.document_id = _retire_version.document_id
     and v.pipeline_id = _retire_version.pipeline_id and v.state = 'ready'
  returning v.version_id into _version_id;
  if _version_id is null then
    return;
  end if;
  if _keep then
    insert into rag._retained_chunks
      (version_id, chunk_index, content, char_count, token_count, content_tsv, language, text_search_config, embedding,
       page_number, section, content_hash)
    select _version_id, c.chunk_index, c.content, c.char_count, c.token_count, c.content_tsv, c.language, c.text_search_config,
           c.embedding, c.page_number, c.section, c.content_hash
    from rag.document_chunks c
    where c.source_id = _retire_version.source_id and c.document_id = _retire_version.document_id
      and c.pipeline_id = _retire_version.pipeline_id;
  end if;
  perform rag._prune_versions(_retire_version.source_id, _retire_version.document_id);
end
$plpgsql$;
comment on function rag._retire_version(integer, bigint, integer) is
  'makes a document''s ready version a superseded one and keeps a copy of its chunks; the caller has the document locked and replaces the'
  ' chunks';

create or replace function rag._prune_versions(source_id integer default null, document_id bigint default null) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pruned bigint;
begin
  with surplus as (
    select v.version_id, v.source_id, v.document_id
      from (select v.*, row_number() over (partition by v.source_id, v.document_id, v.pipeline_id
                                           order by v.finished_at desc, v.version_id desc) as place
              from rag.document_versions v
             where v.restorable
               and (_prune_versions.source_id is null
                    or v.source_id = _prune_versions.source_id and v.document_id = _prune_versions.document_id)) v
     where v.place > rag.get('retain_versions')::integer
  ), locked as materialized (
    -- The document before its versions. One that another transaction has is left for the next time: waiting for it, with
    -- others locked, could be a deadlock.
    select d.source_id, d.document_id
      from rag.documents d
     where (d.source_id, d.document_id) in (select s.source_id, s.document_id from surplus s)
     order by d.source_id, d.document_id
       for no key update skip locked
  ), pruned as (
    update rag.document_versions v
       set restorable = false
      from surplus s
      join locked l on l.source_id = s.source_id and l.document_id = s.document_id
     where v.version_id = s.version_id and v.restorable
    returning v.version_id
  ), gone as (
    delete from rag._retained_chunks c where c.version_id in (select p.version_id from pruned p)
  )
  select count(*) into _pruned from pruned;
  return _pruned;
end
$plpgsql$;
comment on function rag._prune_versions(integer, bigint) is
  'lets go of kept chunks beyond retain_versions, of one document or all; returns of how many versions. Documents that another transaction'
  ' has locked are passed over';

create or replace function rag.restore_version(version_id bigint) returns integer
  language plpgsql
  -- SECURITY DEFINER: chunks are written by ragstone alone.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _version  rag.document_versions;
  _document rag.documents;
  _average  real;
begin
  select * into _version from rag.document_versions v where v.version_id = restore_version.version_id;
  select * into _document from rag.documents d
  where d.source_id = _version.source_id and d.document_id = _version.document_id
  for no key update;
  -- Read again, now that the document is locked and nobody else can change it.
  select * into _version from rag.document_versions v where v.version_id = restore_version.version_id for update;
  if not found then
    raise exception 'there is no version %', coalesce(restore_version.version_id::text, 'null')
      using errcode = 'undefined_object',
            hint    = 'Versions are listed by: select version_id, document_id, state, finished_at from rag.document_versions'
                      ' where restorable;';
  elsif not _version.restorable then
    raise exception 'version % cannot be restored', _version.version_id
      using errcode = 'object_not_in_prerequisite_state',
            detail  = case _version.state when 'ready' then 'It is the one that is searched.' else 'Its chunks are not kept any more.' end,
            hint    = 'How many superseded versions are kept is set by: select rag.set(''retain_versions'', ''3'');';
  -- Twice, as waiting and running jobs have an index each.
  elsif exists (select from rag.ingestion_queue q
                where (q.source_id, q.document_id, q.pipeline_id)
                    = (_version.source_id, _version.document_id, _version.pipeline_id)
                  and q.status <> 'running' and q.status <> 'dead')
     or exists (select from rag.ingestion_queue q
                where (q.source_id, q.document_id, q.pipeline_id)
                    = (_version.source_id, _version.document_id, _version.pipeline_id)
                  and q.status = 'running')
     -- A change that is noted becomes a job with the worker's next look.
     or exists (select from rag._changes c where c.source_id = _version.source_id and _document.source_key = any (c.keys)) then
    raise exception 'document % is about to be processed', _version.document_id
      using errcode = 'object_in_use',
            detail  = 'A version restored now would be replaced at once.',
            hint    = 'Wait until it is done, or cancel it: select rag.cancel(job_id) from rag.ingestion_queue where document_id = '
                      || _version.document_id || ' and status <> ''dead'';';
  end if;
  select s.average_length into strict _average from rag._pipeline_statistics s where s.pipeline_id = _version.pipeline_id;

  -- First, so that rag._retire_version() does not delete its chunks as one version too many.
  update rag.document_versions v set restorable = false where v.version_id = _version.version_id;
  perform rag._retire_version(_version.source_id, _version.document_id, _version.pipeline_id);
  with gone as (
    delete from rag.document_chunks c
    where c.source_id = _version.source_id and c.document_id = _version.document_id and c.pipeline_id = _version.pipeline_id
    returning c.text_search_config, c.content_tsv
  )
  insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
  select _version.pipeline_id, g.text_search_config, -1, g.content_tsv from gone g;

  with back as (
    delete from rag._retained_chunks r where r.version_id = _version.version_id returning r.*
  ), inserted as (
    insert into rag.document_chunks as c
      (pipeline_id, source_id, document_id, tenant_id, chunk_index, content, char_count, token_count,
       content_tsv, content_bm25, embedding, page_number, section, tags, language, text_search_config, content_hash)
    select _version.pipeline_id, _version.source_id, _version.document_id, _document.tenant_id,
           b.chunk_index, b.content, b.char_count, b.token_count, b.content_tsv,
           rag._bm25_weights(b.content_tsv, b.text_search_config, _average), b.embedding,
           b.page_number, b.section, _document.tags, b.language, b.text_search_config, b.content_hash
    from back b
    returning c.text_search_config, c.content_tsv
  )
  insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
  select _version.pipeline_id, i.text_search_config, 1, i.content_tsv from inserted i;

  update rag.document_versions v set state = 'ready', generation = _document.generation, finished_at = now()
   where v.version_id = _version.version_id;
  -- The restored version takes the place of a state that could not be processed.
  perform rag._finish_job(q, 'discarded')
     from rag.ingestion_queue q
    where (q.source_id, q.document_id, q.pipeline_id) = (_version.source_id, _version.document_id, _version.pipeline_id)
      and q.status <> 'running';
  perform rag._set_document_state(_version.source_id, array[_version.document_id]);
  return _version.chunks;
end
$plpgsql$;
comment on function rag.restore_version(bigint) is
  'brings a superseded version of a document back into search, in place of the present one, which is kept in its stead; it stays until the'
  ' row or its file changes, and a dead letter of the document is discarded. Returns its number of chunks. Raises 42704 for no version,'
  ' 55000 where its chunks are not kept, 55006 while a job of the document waits or runs';
