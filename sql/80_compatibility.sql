-- Names that users of the earlier worker know, and look-ups of jobs.

-- Security invoker: row security on the tables behind it is that of who asks.
create or replace view rag.ingestion_log with (security_invoker = true) as
  select d.document_id, d.file_path, d.file_size, d.mime_type as file_type, p.model as embedding_model, p.chunk_size, p.chunk_overlap,
         case when r.job_id is not null then 'processing' else d.status end as status,
         d.chunks as total_chunks,
         case when d.status = 'completed' then d.chunks else 0 end as processed_chunks,
         d.last_error, d.error_hint, d.retry_count, coalesce(r.started_at, d.started_at) as started_at, d.processed_at,
         d.created_at, d.updated_at, s.name as source, d.source_key
    from rag.documents d
    join rag.sources s on s.source_id = d.source_id
    left join rag.pipelines p on p.state = 'active'
    left join rag.ingestion_queue r on r.source_id = d.source_id and r.document_id = d.document_id
                                   and r.pipeline_id = p.pipeline_id and r.status = 'running'
  union all
  select case when not s.assigns_ids then k.key::bigint end, null, null, null, p.model, p.chunk_size, p.chunk_overlap, 'pending', 0, 0, null, null, 0, null, null,
         c.created_at, c.created_at, s.name, k.key
    from rag._changes c
    join rag.sources s on s.source_id = c.source_id
    left join rag.pipelines p on p.state = 'active'
    cross join unnest(c.keys) as k (key)
   where not exists (select from rag.documents d where d.source_id = c.source_id and d.source_key = k.key);
comment on view rag.ingestion_log is 'one row a document: status (pending, processing, completed, failed) and, where it failed, why and what to do. Rows of a large statement have nothing but their key until a worker comes to them';

create or replace function rag.job(job_id bigint)
  returns table (job_id bigint, source text, document_id bigint, pipeline text, operation text, status text, attempts integer,
                 stage text, error text, hint text, created_at timestamptz, started_at timestamptz, finished_at timestamptz, next_run_at timestamptz)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select j.job_id, s.name, j.document_id, p.name, j.operation, j.status, j.attempts, j.stage, j.error, j.error_hint,
         j.created_at, j.started_at, j.finished_at, j.run_at
  from (
    select q.job_id, q.source_id, q.document_id, q.pipeline_id, q.operation, q.status, q.attempts::integer, q.stage, q.error, q.error_hint,
           q.created_at, q.started_at, null::timestamptz as finished_at, case when q.status = 'queued' then q.run_at end as run_at
    from rag.ingestion_queue q where q.job_id = $1
    union all
    select h.job_id, h.source_id, h.document_id, h.pipeline_id, h.operation, h.outcome, h.attempts::integer, null, null, null,
           h.created_at, h.started_at, h.finished_at, null
    from rag.job_history h where h.job_id = $1
  ) j
  left join rag.sources s on s.source_id = j.source_id
  left join rag.pipelines p on p.pipeline_id = j.pipeline_id
$sql$;
comment on function rag.job(bigint) is 'one job, whether it waits, runs, is dead (queued, running, dead) or finished (done, unchanged, superseded); no row for an unknown id';

create or replace function rag.cleanup_orphaned_chunks() returns bigint
  language plpgsql
  -- SECURITY DEFINER: chunks are written by ragstone alone.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _deleted bigint;
begin
  with gone as (
    delete from rag.document_chunks c
     where not exists (select from rag.documents d where d.source_id = c.source_id and d.document_id = c.document_id)
    returning c.pipeline_id, c.text_search_config, c.content_tsv
  ), noted as (
    insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
    select g.pipeline_id, g.text_search_config, -1, g.content_tsv from gone g
    returning 1
  )
  select count(*) into _deleted from noted;
  return _deleted;
end
$plpgsql$;
comment on function rag.cleanup_orphaned_chunks() is 'removes chunks whose document is gone and returns how many there were; deletes take chunks along, so anything but 0 is worth asking why';
