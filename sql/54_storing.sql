-- Storing: what a worker reads for a job, and how its result gets into the database.

create or replace function rag._source_content(source_id integer, source_key text) returns bytea
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- A table that is locked must not delay other sources.
  set lock_timeout = '5s'
as $plpgsql$
declare
  _source  rag.sources;
  _content bytea;
begin
  select * into strict _source from rag.sources s where s.source_id = _source_content.source_id;
  perform rag._require_own_code(_source.relation);
  execute format(case when rag._column_type(_source.relation, _source.content_column) = 'bytea'::regtype
                      then 'select s.%I from %s s where s.%I = $1::%s'
                      else 'select convert_to(s.%I, ''UTF8'') from %s s where s.%I = $1::%s' end,
                 _source.content_column, _source.relation, _source.key_column,
                 rag._type_name(rag._column_type(_source.relation, _source.key_column)))
  into _content using _source_content.source_key;
  return _content;
end
$plpgsql$;
comment on function rag._source_content(integer, text) is 'the document itself, of a source that keeps it in a column';

create or replace function rag._fingerprint(sha256 bytea, document rag.documents, pipeline rag.pipelines) returns bytea
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select sha256(_fingerprint.sha256 || convert_to(json_build_array(
    -- Raise the number when extraction, chunking or text analysis changes what comes out of the same file.
    3,
    -- Of the name only the extension, which tells plain text from tables and source code: a file that moves to
    -- another folder keeps its chunks.
    lower(substring(document.file_path from '[^/\\]\.([^./\\]+)$')),
    document.title, document.language, encode(m.sha256, 'hex'), m.passage_prefix, m.max_tokens,
    pipeline.chunk_strategy, pipeline.chunk_size, pipeline.chunk_overlap, pipeline.chunk_unit,
    pipeline.embed_template, pipeline.text_search_config)::text, 'UTF8'))
  from rag.models m where m.name = pipeline.model
$sql$;
comment on function rag._fingerprint(bytea, rag.documents, rag.pipelines) is
  'sha256 over all that a document''s chunks depend on. Without OCR: rag.set_ocr() sets the fingerprint to null where it matters, so that'
  ' what was recognised stays when OCR is turned off';

create or replace function rag._fenced_job(job_id bigint, worker_id integer, generation bigint) returns rag.ingestion_queue
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job     rag.ingestion_queue;
  _current bigint;
begin
  select * into _job from rag.ingestion_queue q
  where q.job_id = _fenced_job.job_id and q.worker_id = _fenced_job.worker_id;
  if not found then
    return null;
  end if;
  -- Everyone locks a document before its job; otherwise two sessions could deadlock.
  select d.generation into _current from rag.documents d
  where d.source_id = _job.source_id and d.document_id = _job.document_id
  for no key update;
  select * into _job from rag.ingestion_queue q
  where q.job_id = _fenced_job.job_id and q.worker_id = _fenced_job.worker_id
  for update;
  if _job.job_id is null then
    return null;
  end if;
  if _current is distinct from _fenced_job.generation then
    perform rag._finish_job(_job, 'superseded');
    return null;
  end if;
  return _job;
end
$plpgsql$;
comment on function rag._fenced_job(bigint, integer, bigint) is
  'the job, with its document locked, if it is still this worker''s and the document still that of the claim; else null, and an outdated'
  ' job is over';

create or replace function rag._finish_if_unchanged(job_id bigint, worker_id integer, generation bigint, sha256 bytea) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job      rag.ingestion_queue;
  _document rag.documents;
  _pipeline rag.pipelines;
begin
  perform from rag.ingestion_queue q
    join rag.documents d on d.source_id = q.source_id and d.document_id = q.document_id
    join rag.pipelines p on p.pipeline_id = q.pipeline_id
    join rag.document_versions v on v.source_id = q.source_id and v.document_id = q.document_id
                                and v.pipeline_id = q.pipeline_id and v.state = 'ready'
   where q.job_id = _finish_if_unchanged.job_id and q.operation <> 'reembed'
     and v.fingerprint = rag._fingerprint(_finish_if_unchanged.sha256, d, p);
  if not found then
    return false;
  end if;
  _job := rag._fenced_job(_finish_if_unchanged.job_id, _finish_if_unchanged.worker_id, _finish_if_unchanged.generation);
  if _job.job_id is null then
    return true;
  end if;

  select * into strict _document from rag.documents d where d.source_id = _job.source_id and d.document_id = _job.document_id;
  update rag.documents d
     set processed_at = now()
    from rag.pipelines p
   where d.source_id = _job.source_id and d.document_id = _job.document_id
     and p.pipeline_id = _job.pipeline_id and p.state = 'active';
  update rag.document_versions v
     set generation = _document.generation
   where v.source_id = _job.source_id and v.document_id = _job.document_id and v.pipeline_id = _job.pipeline_id and v.state = 'ready';
  update rag.document_chunks c
     set tags = _document.tags, tenant_id = _document.tenant_id, updated_at = now()
   where c.pipeline_id = _job.pipeline_id and c.source_id = _job.source_id and c.document_id = _job.document_id
     and (c.tags is distinct from _document.tags or c.tenant_id is distinct from _document.tenant_id);
  perform rag._finish_job(_job, 'unchanged');
  return true;
end
$plpgsql$;
comment on function rag._finish_if_unchanged(bigint, integer, bigint, bytea) is
  'ends a job whose document has the chunks it would get; false where there is work to do';

create or replace function rag._stored_hashes(job_id bigint) returns setof bytea
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select c.content_hash
  from rag.ingestion_queue q
  join rag.document_chunks c on c.pipeline_id = q.pipeline_id and c.source_id = q.source_id and c.document_id = q.document_id
  where q.job_id = _stored_hashes.job_id and q.operation <> 'reembed'
$sql$;
comment on function rag._stored_hashes(bigint) is 'hashes of the chunks a job''s document has now, whose vectors can be kept';

create or replace function rag._same_cut(job_id bigint)
  returns table (content text, page_number integer, section text, title text, sha256 text, size bigint, mime_type text, extracted json)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with cut as (
    select v.source_id, v.document_id, v.pipeline_id, d.title, d.sha256, d.file_size, d.mime_type, d.extracted
    from rag.ingestion_queue q
    join rag.pipelines wanted on wanted.pipeline_id = q.pipeline_id
    join rag.documents d on d.source_id = q.source_id and d.document_id = q.document_id
    join rag.pipelines p on p.pipeline_id <> wanted.pipeline_id
     and (p.chunk_strategy, p.chunk_size, p.chunk_overlap, p.chunk_unit)
       = (wanted.chunk_strategy, wanted.chunk_size, wanted.chunk_overlap, wanted.chunk_unit)
     -- Lengths in tokens and cuts by meaning depend on the model. A template shortens the content.
     and ((p.chunk_unit = 'characters' and p.chunk_strategy <> 'semantic') or p.model = wanted.model)
     -- Text recognised in pictures depends on the languages of OCR.
     and (p.ocr = wanted.ocr or not d.extracted ?| '{pages_without_text,pages_recognised}')
    -- Only of the document's present generation, which is the state that the job is for.
    join rag.document_versions v on v.source_id = d.source_id and v.document_id = d.document_id
     and v.pipeline_id = p.pipeline_id and v.state = 'ready' and v.generation = d.generation and v.sha256 = d.sha256
    where q.job_id = _same_cut.job_id and q.operation <> 'reembed'
    order by p.state <> 'active', p.pipeline_id
    limit 1
  )
  select c.content, c.page_number, c.section, coalesce(t.title, t.extracted ->> 'title'), encode(t.sha256, 'hex'), t.file_size,
         t.mime_type, t.extracted::json
  from cut t
  join rag.document_chunks c on c.source_id = t.source_id and c.document_id = t.document_id and c.pipeline_id = t.pipeline_id
  order by c.chunk_index
$sql$;
comment on function rag._same_cut(bigint) is
  'the passages of a job''s document as another pipeline of the same chunking has them, so that its file need not be read again; none'
  ' where there are none';

create or replace function rag._to_vector(literal text) returns vector
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- The assignment converts by the type's input function, wherever pgvector's schema is.
  return literal;
end
$plpgsql$;
comment on function rag._to_vector(text) is 'a vector from its text form';

create or replace function rag._store_document(
    job_id bigint, worker_id integer, generation bigint, document json, chunks json)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job       rag.ingestion_queue := rag._fenced_job(_store_document.job_id, _store_document.worker_id, _store_document.generation);
  _pipeline  rag.pipelines;
  _document  rag.documents;
  _average   real;
  _language  text;
  _config    text;
  _sha256    bytea := decode(_store_document.document ->> 'sha256', 'hex');
  _total     integer;
  _reused    integer;
  _tokens    integer;
  _problem   text;
begin
  if _job.job_id is null then
    return 'superseded';
  end if;
  select * into strict _pipeline from rag.pipelines p where p.pipeline_id = _job.pipeline_id;
  select * into strict _document from rag.documents d where d.source_id = _job.source_id and d.document_id = _job.document_id;
  select s.average_length into strict _average from rag._pipeline_statistics s where s.pipeline_id = _job.pipeline_id;
  _language := rag._language_code(coalesce(_document.language, _store_document.document #>> '{extracted,language}'));
  _config := rag._text_search_config(_language, _pipeline.text_search_config);
  perform rag._lock_quota(_document.tenant_id);
  _problem := rag._quota_problem(_job.job_id, (_store_document.document ->> 'size')::bigint,
                                 json_array_length(_store_document.chunks));
  if _problem is not null then
    return rag._record_failure(_job, 'rejected', 'store', 'over_quota',
      format('the document is over a quota of its tenant. %s.', _problem),
      'Delete other documents of the tenant, or raise the limit with rag.set().');
  end if;
  perform rag._retire_version(_job.source_id, _job.document_id, _job.pipeline_id);

  with incoming as materialized (
    select i.*, t.tsv, decode(i.hash, 'hex') as content_hash
    from json_to_recordset(_store_document.chunks)
      as i (chunk_index integer, content text, char_count integer, token_count integer,
            page_number integer, section text, hash text, indexed_text text, embedding text)
    -- offset 0 makes PostgreSQL evaluate the function once, though its result is used several times.
    cross join lateral (select rag._analyze(coalesce(i.indexed_text, i.content), _config) as tsv offset 0) t
  ), old as materialized (
    select c.chunk_index, c.content_hash, c.embedding, c.page_number, c.section, c.tags, c.tenant_id,
           c.language, c.text_search_config, c.content_tsv
    from rag.document_chunks c
    where c.pipeline_id = _job.pipeline_id and c.source_id = _job.source_id and c.document_id = _job.document_id
  ), kept as materialized (
    -- A chunk that is the same in the same place is not written again, which saves work in the indexes.
    select i.chunk_index
    from incoming i
    join old o on o.chunk_index = i.chunk_index and o.content_hash = i.content_hash
              and o.page_number is not distinct from i.page_number and o.section is not distinct from i.section
    where o.tags is not distinct from _document.tags and o.tenant_id is not distinct from _document.tenant_id
      and o.language is not distinct from _language and o.text_search_config = _config
      -- An earlier version of ragstone may have analysed the same text differently.
      and o.content_tsv = i.tsv and i.embedding is null
  ), removed as (
    delete from rag.document_chunks c
     where c.pipeline_id = _job.pipeline_id and c.source_id = _job.source_id and c.document_id = _job.document_id
       and c.chunk_index not in (select k.chunk_index from kept k)
    returning c.text_search_config, c.content_tsv
  ), inserted as (
    insert into rag.document_chunks as c
      (pipeline_id, source_id, document_id, tenant_id, chunk_index, content, char_count, token_count,
       content_tsv, content_bm25, embedding, page_number, section, tags, language, text_search_config, content_hash)
    select _job.pipeline_id, _job.source_id, _job.document_id, _document.tenant_id,
           i.chunk_index, i.content, i.char_count, i.token_count, i.tsv, rag._bm25_weights(i.tsv, _config, _average),
           case when i.embedding is not null then rag._to_vector(i.embedding)
                else (select o.embedding from old o where o.content_hash = i.content_hash limit 1) end,
           i.page_number, i.section, _document.tags, _language, _config, i.content_hash
    from incoming i
    where i.chunk_index not in (select k.chunk_index from kept k)
      -- Counting makes sure they are deleted before their chunk_index is used again.
      and (select count(*) from removed) >= 0
    returning c.content_tsv
  ), noted as (
    insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
    select _job.pipeline_id, r.text_search_config, -1, r.content_tsv from removed r
    union all
    select _job.pipeline_id, _config, 1, n.content_tsv from inserted n
  )
  select count(*), count(*) filter (where i.embedding is null),
         coalesce(sum(i.token_count) filter (where i.embedding is not null), 0)
    into _total, _reused, _tokens
    from incoming i;

  insert into rag.document_versions
    (source_id, document_id, pipeline_id, generation, state, sha256, fingerprint, chunks, chunks_reused, tokens, started_at, duration_ms)
  values (_job.source_id, _job.document_id, _job.pipeline_id, _store_document.generation, 'ready', _sha256,
          rag._fingerprint(_sha256, _document, _pipeline), _total, _reused, _tokens,
          _job.started_at, extract(epoch from clock_timestamp() - _job.started_at) * 1000);
  update rag.documents d
     set started_at   = case when _pipeline.state = 'active' then _job.started_at else d.started_at end,
         processed_at = case when _pipeline.state = 'active' then now() else d.processed_at end,
         sha256       = _sha256,
         -- The row has not changed (rag.maintain() looked at it again), but its file has.
         updated_at   = case when _job.priority < 0 and d.sha256 <> _sha256 then now() else d.updated_at end,
         file_size    = (_store_document.document ->> 'size')::bigint,
         mime_type    = _store_document.document ->> 'mime_type',
         extracted    = (_store_document.document -> 'extracted')::jsonb
   where d.source_id = _job.source_id and d.document_id = _job.document_id;
  perform rag._finish_job(_job, 'done');
  return 'done';
end
$plpgsql$;
comment on function rag._store_document(bigint, integer, bigint, json, json) is
  'replaces the chunks of a job''s document and ends the job, in one transaction; returns done, superseded where the document changed'
  ' meanwhile and nothing was stored, or dead where a quota of its tenant is used up';

create or replace function rag._fail_job(
    job_id bigint, worker_id integer, generation bigint, failure text, stage text, code text, message text, hint text)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job rag.ingestion_queue := rag._fenced_job(_fail_job.job_id, _fail_job.worker_id, _fail_job.generation);
begin
  if _job.job_id is null then
    return 'superseded';
  end if;
  return rag._record_failure(_job, _fail_job.failure, _fail_job.stage, _fail_job.code, _fail_job.message, _fail_job.hint);
end
$plpgsql$;
comment on function rag._fail_job(bigint, integer, bigint, text, text, text, text, text) is
  'records the failure of a job in a transaction of its own; returns queued (it is tried again), dead or superseded';
