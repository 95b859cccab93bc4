-- States: the only file that enqueues jobs and that writes the status of a document.
--
-- A job (rag.ingestion_queue.status):
--
--   rag._enqueue() ──▶ queued ──claim, attempts + 1──▶ running ──stored──▶ rag.job_history
--                        ▲                                │                 (done, unchanged, superseded)
--                        ├──failed, attempts left─────────┤
--                        │  (after the delays of retry_delays_s)
--                        ├──given back, worker died───────┤
--                        │                                └──permanent, last attempt, rag.cancel()──▶ dead
--                        ├──rag.retry(), rag.reembed(), a change of the row──────────────────────────┤
--                                                            rag.job_history (discarded) ◀───────────┘
--                                                            by rag.discard(), rag.restore_version()
--
-- A document (rag.documents.status) says how its job in the active pipeline stands:
--
--   pending    a job waits or runs that has not failed yet; or workers still fill the active pipeline
--   failed     its last attempt failed: the job waits to be tried again, or is dead
--   rejected   its job is dead because the document exceeds a limit
--   completed  no job, and the chunks are those of its present generation
--
--   pending ──stored──▶ completed ──a change, rag.reembed()──▶ pending
--   pending ──an attempt failed──▶ failed ──stored──▶ completed
--   pending ──over a limit──▶ rejected
--   failed, rejected ──a change, rag.retry(), rag.reembed()──▶ pending
--   failed, rejected ──rag.discard()──▶ the same; completed where the present generation is searchable
--   failed, rejected ──rag.restore_version()──▶ completed
--   any ──rag.activate_pipeline()──▶ what its job in that pipeline says
--
-- Nobody chooses a status. After each change of jobs, versions or the active pipeline it is derived again, by
-- rag._set_document_state() from the view rag._document_states. Everyone locks a document before its jobs.

create or replace view rag._document_states as
  select d.source_id, d.document_id, d.status as written, j.status as job,
         case when j.status = 'dead' and j.failure = 'rejected' then 'rejected'
              when j.failure is not null then 'failed'
              when j.job_id is not null then 'pending'
              when v.generation = d.generation then 'completed'
              when exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id) then 'pending'
              -- Its dead letter was discarded: the reason stays.
              else d.status end as status,
         coalesce(v.chunks, 0) as chunks,
         case when j.job_id is null then d.retry_count when j.failure is null then 0 else j.attempts end as retry_count,
         case when k.is_kept then d.error_code else j.error_code end as error_code,
         case when k.is_kept then d.last_error else j.error end as last_error,
         case when k.is_kept then d.error_hint else j.error_hint end as error_hint
    from rag.documents d
    join rag.pipelines p on p.state = 'active'
    left join rag.ingestion_queue w on (w.source_id, w.document_id, w.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
                                   and w.status <> 'running'
    left join rag.ingestion_queue r on (r.source_id, r.document_id, r.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
                                   and r.status = 'running'
    left join rag.document_versions v on (v.source_id, v.document_id, v.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
                                     and v.state = 'ready'
   -- Where one job waits and another runs, the waiting one is newer and decides.
   cross join lateral (
     select coalesce(w.job_id, r.job_id) as job_id, coalesce(w.status, r.status) as status,
            case when w.job_id is null then r.failure else w.failure end as failure,
            case when w.job_id is null then r.error_code else w.error_code end as error_code,
            case when w.job_id is null then r.error else w.error end as error,
            case when w.job_id is null then r.error_hint else w.error_hint end as error_hint,
            case when w.job_id is null then r.attempts else w.attempts end as attempts) j
   cross join lateral (
     select j.job_id is null and v.generation is distinct from d.generation
            and not exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id) as is_kept) k;
comment on view rag._document_states is
  'what the status of each document must be, by its job and its version in the active pipeline, and what it is as written';

create or replace function rag._set_document_state(source_id integer, document_ids bigint[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Always by the indexes: statistics of the queue are soon outdated, and a plan that reads all of it is kept.
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set jit = off
as $plpgsql$
begin
  update rag.documents d
     set status = s.status, chunks = s.chunks, retry_count = s.retry_count,
         error_code = s.error_code, last_error = s.last_error, error_hint = s.error_hint,
         updated_at = case when s.last_error is not null then now() else d.updated_at end
    from unnest(_set_document_state.document_ids) i (document_id)
   -- offset 0 keeps the subquery apart: each document is looked up by its whole key, and never found by its source alone.
   cross join lateral (select s.* from rag._document_states s
                        where s.source_id = _set_document_state.source_id and s.document_id = i.document_id offset 0) s
   where d.source_id = s.source_id and d.document_id = s.document_id
     and (d.status, d.chunks, d.retry_count, d.error_code, d.last_error, d.error_hint)
         is distinct from (s.status, s.chunks, s.retry_count, s.error_code, s.last_error, s.error_hint);
end
$plpgsql$;
comment on function rag._set_document_state(integer, bigint[]) is
  'writes the status of documents, with the reason of a failure and the number of chunks, as their jobs and versions are now; called after'
  ' every change of those, with the documents locked';

create or replace function rag._set_all_document_states() returns void
  language sql
  set search_path = pg_catalog, pg_temp
  -- Hash joins, whose time grows with the number of documents alone, also before the tables are analyzed.
  set enable_nestloop = off
  set enable_mergejoin = off
  set jit = off
as $sql$
  update rag.documents d
     set status = s.status, chunks = s.chunks, retry_count = s.retry_count,
         error_code = s.error_code, last_error = s.last_error, error_hint = s.error_hint
    from rag._document_states s
   where d.source_id = s.source_id and d.document_id = s.document_id
     and (d.status, d.chunks, d.retry_count, d.error_code, d.last_error, d.error_hint)
         is distinct from (s.status, s.chunks, s.retry_count, s.error_code, s.last_error, s.error_hint);
$sql$;
comment on function rag._set_all_document_states() is
  'the same for all documents, after another pipeline has become the active one; the caller has locked rag.documents';

create or replace function rag._insert_jobs(
    source_id integer, document_ids bigint[], operation text, priority smallint, pipeline_id integer)
  returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- As in rag._set_document_state().
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set jit = off
as $plpgsql$
#variable_conflict use_column
begin
  insert into rag.ingestion_queue as q (source_id, document_id, pipeline_id, operation, priority, tenant_id)
  select d.source_id, d.document_id, p.pipeline_id, _insert_jobs.operation, _insert_jobs.priority, coalesce(d.tenant_id, 0)
    from unnest(_insert_jobs.document_ids) i (document_id)
   cross join lateral (select d.* from rag.documents d
                        where d.source_id = _insert_jobs.source_id and d.document_id = i.document_id offset 0) d
    join rag.pipelines p on p.state in ('active', 'building')
   where _insert_jobs.pipeline_id is null or p.pipeline_id = _insert_jobs.pipeline_id
   order by d.document_id, p.pipeline_id
  on conflict (source_id, document_id, pipeline_id) where status <> 'running' do update
    -- A waiting job keeps its place in the queue, and rag.reembed() stays in force if a change follows.
    set operation = case when excluded.operation = 'reembed' then 'reembed' else q.operation end,
        run_at = case when q.status = 'queued' and q.attempts = 0 then q.run_at else now() end,
        status = 'queued', attempts = 0, priority = greatest(q.priority, excluded.priority), tenant_id = excluded.tenant_id,
        failure = null, stage = null, error_code = null, error = null, error_hint = null, failed_at = null;
end
$plpgsql$;
comment on function rag._insert_jobs(integer, bigint[], text, smallint, integer) is
  'the part of rag._enqueue() that leaves the documents as they are';

create or replace function rag._enqueue(
    source_id integer, document_ids bigint[], operation text default 'index', priority integer default 0,
    pipeline_id integer default null)
  returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag._insert_jobs(_enqueue.source_id, _enqueue.document_ids, _enqueue.operation, _enqueue.priority::smallint,
                           _enqueue.pipeline_id);
  perform rag._set_document_state(_enqueue.source_id, _enqueue.document_ids);
  return coalesce(cardinality(_enqueue.document_ids), 0);
end
$plpgsql$;
comment on function rag._enqueue(integer, bigint[], text, integer, integer) is
  'queues documents of a source, for one pipeline or for the active one and all that are being built; a job that waits already, was'
  ' tried or is dead begins anew, with all its attempts. The caller has locked the documents. Returns how many they are';

create or replace function rag._take_up(source_id integer, source_rows rag._source_row[], priority smallint) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _ids bigint[];
begin
  with changed as (
    insert into rag.documents as d (source_id, document_id, source_key, file_path, title, tenant_id, tags, language, metadata)
    select _take_up.source_id, r.document_id, r.source_key, r.file_path, r.title, r.tenant_id, r.tags, r.language, r.metadata
      from unnest(_take_up.source_rows) r
     order by r.source_key
    on conflict on constraint documents_source_id_source_key_key do update
      -- The status that rag._document_states gives once the job exists, set here so that each row is written once.
      set generation = nextval('rag._generation_seq'), status = 'pending', retry_count = 0,
          error_code = null, last_error = null, error_hint = null,
          file_path = excluded.file_path, title = excluded.title, tenant_id = excluded.tenant_id, tags = excluded.tags,
          language = excluded.language, metadata = excluded.metadata,
          -- rag.enqueue_existing() and rag.maintain() look at rows that have not changed.
          updated_at = case when _take_up.priority < 0
                             and (d.file_path, d.title, d.tenant_id, d.tags, d.language, d.metadata)
                                 is not distinct from
                                 (excluded.file_path, excluded.title, excluded.tenant_id, excluded.tags, excluded.language,
                                  excluded.metadata)
                            then d.updated_at else now() end
    returning d.document_id, d.file_path, d.xmax = 0 as is_new
  ), notified as (
    select rag._notify_change(case when c.is_new then 'INSERT' else 'UPDATE' end, c.document_id, c.file_path)
      from changed c
     where rag.get('notifications') = 'on'
  )
  select array_agg(c.document_id) into _ids from changed c where (select count(*) from notified) >= 0;
  perform rag._insert_jobs(_take_up.source_id, _ids, 'index', _take_up.priority, null);
end
$plpgsql$;
comment on function rag._take_up(integer, rag._source_row[], smallint) is
  'makes rows of a source documents with a new generation, and queues them';

create or replace function rag._retry_delay(attempts integer) returns interval
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Up to a tenth more, so that jobs that failed together are not all tried again at the same moment.
  select delays[least(greatest(attempts, 1), cardinality(delays))] * (1 + random() / 10) * interval '1 second'
  from (select string_to_array(rag.get('retry_delays_s'), ',')::float[] as delays) s
$sql$;
comment on function rag._retry_delay(integer) is 'how long to wait after so many attempts';

create or replace function rag._notify_status(job rag.ingestion_queue, status text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Off unless asked for: NOTIFY serialises commits server-wide.
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
  select rag._set_document_state(job.source_id, array[job.document_id]);
$sql$;
comment on function rag._finish_job(rag.ingestion_queue, text) is
  'moves a job from the queue to the history; its document is locked by the caller';

create or replace function rag._note_failure(job rag.ingestion_queue, message text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  insert into rag.document_versions (source_id, document_id, pipeline_id, generation, state, error, started_at, duration_ms)
  select d.source_id, d.document_id, job.pipeline_id, d.generation, 'failed', message, coalesce(job.started_at, clock_timestamp()),
         coalesce(extract(epoch from clock_timestamp() - job.started_at) * 1000, 0)
    from rag.documents d where d.source_id = job.source_id and d.document_id = job.document_id
$sql$;
comment on function rag._note_failure(rag.ingestion_queue, text) is
  'notes among the versions of a document that a pipeline could not process its present generation';

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
    -- The document changed meanwhile, so what failed was an older state of it.
    perform rag._finish_job(job, 'superseded');
    return 'superseded';
  end if;

  update rag.ingestion_queue q
     set status = case when _dead then 'dead' else 'queued' end,
         run_at = now() + rag._retry_delay(job.attempts),
         worker_id = null, failure = _record_failure.failure, stage = _record_failure.stage,
         error_code = code, error = message, error_hint = hint, failed_at = now()
   where q.job_id = job.job_id;
  perform rag._set_document_state(job.source_id, array[job.document_id]);
  if _dead and failure <> 'cancelled' then
    perform rag._note_failure(job, message);
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
