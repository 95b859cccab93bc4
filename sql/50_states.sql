-- States: the only functions that write a job's status.
--
--   queued ──claim, attempts + 1──▶ running ──store──▶ rag.job_history (done, unchanged, superseded)
--     ▲                                │
--     ├──failed, attempts left─────────┤   after the delays of retry_delays_s
--     └──given back, worker died───────┤
--                                      └──permanent, last attempt──▶ dead ──rag.retry()──▶ queued
--
-- Everyone locks a document before its jobs.

create or replace function rag._retry_delay(attempts integer) returns interval
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Up to a tenth more, so that what failed together does not come back together.
  select delays[least(greatest(attempts, 1), cardinality(delays))] * (1 + random() / 10) * interval '1 second'
  from (select string_to_array(rag.get('retry_delays_s'), ',')::float[] as delays) s
$sql$;
comment on function rag._retry_delay(integer) is 'how long to wait after so many attempts';

create or replace function rag._notify_status(job rag.ingestion_queue, status text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Off unless asked for: every NOTIFY makes all commits of the server take turns.
  select pg_notify('document_status', json_build_object(
    'job_id', job.job_id, 'source_id', job.source_id, 'document_id', job.document_id, 'status', status, 'attempts', job.attempts)::text)
  where rag.get('status_notifications') = 'on'
$sql$;
comment on function rag._notify_status(rag.ingestion_queue, text) is
  'tells channel document_status how an attempt ended: done, unchanged, superseded, discarded, queued (failed, tried again) or dead';

create or replace function rag._finish_job(job rag.ingestion_queue, outcome text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  select rag._notify_status(job, outcome);
  delete from rag.ingestion_queue q where q.job_id = job.job_id;
  insert into rag.job_history (job_id, source_id, document_id, pipeline_id, operation, outcome, attempts, worker_id, created_at, started_at)
  values (job.job_id, job.source_id, job.document_id, job.pipeline_id, job.operation, outcome, job.attempts, job.worker_id,
          job.created_at, job.started_at);
$sql$;
comment on function rag._finish_job(rag.ingestion_queue, text) is 'moves a job from the queue to the history';

create or replace function rag._record_failure(
    job rag.ingestion_queue, failure text, stage text, code text, message text, hint text)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _dead boolean := failure in ('permanent', 'rejected', 'cancelled') or job.attempts >= rag.get('max_attempts')::integer;
begin
  perform from rag.documents d
  where d.source_id = job.source_id and d.document_id = job.document_id
  for no key update;

  if exists (select from rag.ingestion_queue w
             where (w.source_id, w.document_id, w.pipeline_id) = (job.source_id, job.document_id, job.pipeline_id)
               and w.status <> 'running' and w.job_id <> job.job_id) then
    -- The document changed meanwhile: the failure was that of an older state.
    perform rag._finish_job(job, 'superseded');
    return 'superseded';
  end if;

  update rag.documents d
     set status = case failure when 'rejected' then 'rejected' else 'failed' end, retry_count = job.attempts, error_code = code, last_error = message, error_hint = hint, updated_at = now()
    from rag.pipelines p
   where d.source_id = job.source_id and d.document_id = job.document_id
     and p.pipeline_id = job.pipeline_id and p.state = 'active';
  update rag.ingestion_queue q
     set status = case when _dead then 'dead' else 'queued' end,
         run_at = now() + rag._retry_delay(job.attempts),
         worker_id = null, failure = _record_failure.failure, stage = _record_failure.stage,
         error_code = code, error = message, error_hint = hint, failed_at = now()
   where q.job_id = job.job_id;
  if _dead and failure <> 'cancelled' then
    insert into rag.document_versions
      (source_id, document_id, pipeline_id, generation, state, error, started_at, duration_ms)
    select d.source_id, d.document_id, job.pipeline_id, d.generation, 'failed', message,
           job.started_at, extract(epoch from clock_timestamp() - job.started_at) * 1000
    from rag.documents d where d.source_id = job.source_id and d.document_id = job.document_id;
  end if;
  perform rag._notify_status(job, case when _dead then 'dead' else 'queued' end);
  return case when _dead then 'dead' else 'queued' end;
end
$plpgsql$;
comment on function rag._record_failure(rag.ingestion_queue, text, text, text, text, text) is
  'ends a job as queued again or dead, with the reason on it and on its document; returns queued, dead, or superseded where a newer job is'
  ' waiting';

create or replace function rag._requeue(job rag.ingestion_queue, attempts integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if exists (select from rag.ingestion_queue w
             where (w.source_id, w.document_id, w.pipeline_id) = (job.source_id, job.document_id, job.pipeline_id)
               and w.status <> 'running') then
    delete from rag.ingestion_queue q where q.job_id = job.job_id;
  else
    update rag.ingestion_queue q
       set status = 'queued', worker_id = null, attempts = _requeue.attempts
     where q.job_id = job.job_id;
  end if;
end
$plpgsql$;
comment on function rag._requeue(rag.ingestion_queue, integer) is
  'puts a running job back into its line, or lets it go where a newer one waits; its document is locked by the caller';
