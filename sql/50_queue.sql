-- The life of a job. Each function here is one short transaction of a worker.
--
--   queued ──claim, attempts + 1──▶ running ──store──▶ rag.job_history (done, unchanged, superseded)
--     ▲                                │
--     ├──failed, attempts left─────────┤   after the delays of retry_delays_s
--     └──given back, worker died───────┤
--                                      └──permanent, last attempt──▶ dead ──rag.retry()──▶ queued
--
-- A worker's session holds the advisory lock (rag._lock_class(), worker_id) for as long as it lives:
-- the lock is the proof of life, gone with the session however that ends, so no lease has to expire.
--
-- Order. Jobs never tried before wait in lanes, one for each priority and tenant. A worker looks up
-- where each lane begins (rag._lanes()) and from then on takes from the lanes of the highest priority
-- in turn, so that a tenant with a million jobs delays nobody else's. It remembers how far it is in
-- each lane, and so never passes again over the remains of finished jobs, which vacuum cannot remove
-- while some transaction is open for long. Jobs that were tried before wait by time in one line of
-- their own and are taken alone, one for every few batches, so that neither line starves the other
-- and the one that kills workers takes no other with it again.
--
-- Everyone locks a document before its jobs.

create or replace function rag._lock_class() returns integer
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select 1918988147 $sql$; -- 'rags' in ASCII

create or replace function rag._worker_is_alive(worker_id integer) returns boolean
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  select exists (
    select from pg_locks l
    where l.locktype = 'advisory' and l.classid = rag._lock_class()::oid and l.objid = worker_id::oid and l.objsubid = 2 and l.granted
      and l.database = (select d.oid from pg_database d where d.datname = current_database()))
$sql$;
comment on function rag._worker_is_alive(integer) is 'whether the session of a worker still holds its lock';

create or replace function rag._register_worker() returns integer
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _worker_id integer := nextval('rag._worker_id_seq');
begin
  perform pg_advisory_lock(rag._lock_class(), _worker_id);
  perform rag._free_jobs_of_dead_workers(everyone => true);
  perform rag._follow_uploads();
  insert into rag.workers (worker_id, pid) values (_worker_id, pg_backend_pid());
  return _worker_id;
end
$plpgsql$;
comment on function rag._register_worker() is 'announces this session as a worker and takes the lock that proves it alive';

create or replace function rag._report_worker(worker_id integer, state text, documents integer, chunks integer, tokens bigint) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _worker rag.workers;
begin
  select * into _worker from rag.workers w where w.worker_id = _report_worker.worker_id;
  -- An idle worker asks several times a second: it writes only what has changed.
  if (_worker.state, 0, 0) is distinct from (_report_worker.state, _report_worker.documents, _report_worker.chunks) then
    update rag.workers w
       set state = _report_worker.state, documents = w.documents + _report_worker.documents,
           chunks = w.chunks + _report_worker.chunks, tokens = w.tokens + _report_worker.tokens
     where w.worker_id = _report_worker.worker_id;
  end if;
  return coalesce(_worker.stop_requested, true);
end
$plpgsql$;
comment on function rag._report_worker(integer, text, integer, integer, bigint) is 'adds what a worker has done since its last report; returns whether it shall stop';

create or replace function rag._leave_worker(worker_id integer) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  delete from rag.workers w where w.worker_id = _leave_worker.worker_id;
  select pg_advisory_unlock(rag._lock_class(), _leave_worker.worker_id);
$sql$;

create or replace function rag._retry_delay(attempts integer) returns interval
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Up to a tenth more, so that what failed together does not come back together.
  select delays[least(greatest(attempts, 1), cardinality(delays))] * (1 + random() / 10) * interval '1 second'
  from (select string_to_array(rag.get('retry_delays_s'), ',')::float[] as delays) s
$sql$;
comment on function rag._retry_delay(integer) is 'how long to wait after so many attempts';

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
comment on function rag._record_failure(rag.ingestion_queue, text, text, text, text, text) is 'ends a job as queued again or dead, with the reason on it and on its document; returns queued, dead, or superseded where a newer job is waiting';

create or replace function rag._free_jobs_of_dead_workers(everyone boolean default false) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _dead integer[];
  _job  rag.ingestion_queue;
begin
  -- A restored database has running jobs and no workers at all: whoever starts looks at every job.
  select array_agg(w.worker_id) into _dead
  from (select w.worker_id from rag.workers w
        union
        select q.worker_id from rag.ingestion_queue q where _free_jobs_of_dead_workers.everyone and q.status = 'running') w
  where not rag._worker_is_alive(w.worker_id);
  if _dead is null then
    return;
  end if;

  for _job in
    select q.* from rag.ingestion_queue q
    where q.status = 'running' and q.worker_id = any (_dead)
    order by q.source_id, q.document_id
  loop
    -- The document before the job; a document that is busy is left for the next look.
    perform from rag.documents d
    where d.source_id = _job.source_id and d.document_id = _job.document_id
    for no key update skip locked;
    continue when not found;
    select * into _job from rag.ingestion_queue q
    where q.job_id = _job.job_id and q.worker_id = any (_dead)
    for update;
    continue when not found;

    if _job.attempts > 1 then
      perform rag._record_failure(_job, 'poison', 'worker', 'worker_died', 'the worker died while it had this document',
        'It was tried alone, so the document is the likely cause: look into the server''s log at the time.');
    else
      -- One of a batch, most likely innocent: no reason to wait before it is tried alone.
      perform rag._requeue(_job, _job.attempts);
    end if;
  end loop;
  delete from rag.workers w
   where w.worker_id = any (_dead)
     and not exists (select from rag.ingestion_queue q where q.status = 'running' and q.worker_id = w.worker_id);
end
$plpgsql$;
comment on function rag._free_jobs_of_dead_workers(boolean) is 'makes jobs of vanished workers claimable again, or dead after their attempts';

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
comment on function rag._requeue(rag.ingestion_queue, integer) is 'puts a running job back into its line, or lets it go where a newer one waits; its document is locked by the caller';

create or replace function rag._lanes() returns table (priority smallint, tenant_id bigint, job_id bigint)
  language sql volatile
  set search_path = pg_catalog, pg_temp
  -- Statistics of a queue are of another moment, and with none the planner reads the whole table.
  set enable_seqscan = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
as $sql$
  -- From lane to lane by the index, however many jobs are in each.
  with recursive lanes as (
    (select q.priority, q.tenant_id, q.job_id
       from rag.ingestion_queue q
      where q.status = 'queued' and q.attempts = 0
      order by q.priority desc, q.tenant_id, q.job_id
      limit 1)
    union all
    select n.priority, n.tenant_id, n.job_id
      from lanes l
     cross join lateral (
       (select q.priority, q.tenant_id, q.job_id
          from rag.ingestion_queue q
         where q.status = 'queued' and q.attempts = 0 and q.priority = l.priority and q.tenant_id > l.tenant_id
         order by q.priority desc, q.tenant_id, q.job_id
         limit 1)
       union all
       (select q.priority, q.tenant_id, q.job_id
          from rag.ingestion_queue q
         where q.status = 'queued' and q.attempts = 0 and q.priority < l.priority
         order by q.priority desc, q.tenant_id, q.job_id
         limit 1)
       limit 1
     ) n
  )
  select l.priority, l.tenant_id, l.job_id from lanes l
$sql$;
comment on function rag._lanes() is 'where each lane begins: the first waiting job of every priority and tenant that was never tried';

create or replace function rag._claimed_jobs(job_ids bigint[])
  returns table (job_id bigint, source_id integer, document_id bigint, source_key text, generation bigint, pipeline_id integer,
                 operation text, attempts smallint, file_path text, title text, language text, tenant_id bigint, has_content boolean)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select q.job_id, q.source_id, q.document_id, d.source_key, d.generation, q.pipeline_id, q.operation,
         q.attempts, d.file_path, d.title, d.language, d.tenant_id, s.content_column is not null
    from rag.ingestion_queue q
    join rag.documents d on d.source_id = q.source_id and d.document_id = q.document_id
    join rag.sources s on s.source_id = q.source_id
   where q.job_id = any (job_ids)
   order by q.pipeline_id, q.job_id
$sql$;
comment on function rag._claimed_jobs(bigint[]) is 'jobs with what a worker needs to know of their documents';

create or replace function rag._claim_jobs(worker_id integer, priority smallint, tenant_id bigint, from_job bigint, max_jobs integer)
  returns bigint[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- One plan, whatever the statistics, which are of another moment than the queue: by the index of the lanes,
  -- without a join (offset keeps the subquery apart), so that nothing passes over what is not of the lane.
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off
as $plpgsql$
declare
  _job_id bigint;
  _jobs   bigint[];
begin
  for _job_id in
    select q.job_id
      from rag.ingestion_queue q
     where q.status = 'queued' and q.attempts = 0
       and q.priority = _claim_jobs.priority
       -- Together, so that the lanes' index alone fits, and never that of job_id, in which all lanes lie.
       and (q.tenant_id, q.job_id) >= (_claim_jobs.tenant_id, _claim_jobs.from_job)
       and (q.tenant_id, q.job_id) <= (_claim_jobs.tenant_id, 9223372036854775807)
       and not exists (select from rag.ingestion_queue r
                       where r.status = 'running'
                         and (r.source_id, r.document_id, r.pipeline_id) = (q.source_id, q.document_id, q.pipeline_id)
                       offset 0)
     order by q.tenant_id, q.job_id
     limit _claim_jobs.max_jobs
       for update skip locked
  loop
    update rag.ingestion_queue q
       set status = 'running', worker_id = _claim_jobs.worker_id, attempts = 1, started_at = now()
     where q.job_id = _job_id;
    _jobs := _jobs || _job_id;
  end loop;
  return _jobs;
end
$plpgsql$;
comment on function rag._claim_jobs(integer, smallint, bigint, bigint, integer) is 'gives a worker the next jobs of a lane, with their attempt counted; the caller commits before the work';

create or replace function rag._claim_retry(worker_id integer) returns bigint[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- As in rag._claim_jobs().
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off
as $plpgsql$
declare
  _job_id bigint;
begin
  select q.job_id into _job_id
    from rag.ingestion_queue q
   where q.status = 'queued' and q.attempts > 0 and q.run_at <= now()
     and not exists (select from rag.ingestion_queue r
                     where r.status = 'running'
                       and (r.source_id, r.document_id, r.pipeline_id) = (q.source_id, q.document_id, q.pipeline_id)
                     offset 0)
   order by q.run_at, q.job_id
   limit 1
     for update skip locked;
  update rag.ingestion_queue q
     set status = 'running', worker_id = _claim_retry.worker_id, attempts = q.attempts + 1, started_at = now()
   where q.job_id = _job_id;
  return array_remove(array[_job_id], null);
end
$plpgsql$;
comment on function rag._claim_retry(integer) is 'gives a worker the one job, tried before, that has been due the longest';

create or replace function rag._give_back_jobs(worker_id integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job rag.ingestion_queue;
begin
  for _job in
    select q.* from rag.ingestion_queue q
    where q.status = 'running' and q.worker_id = _give_back_jobs.worker_id
    order by q.source_id, q.document_id
  loop
    perform from rag.documents d
    where d.source_id = _job.source_id and d.document_id = _job.document_id
    for no key update;
    perform rag._requeue(q, q.attempts - 1) from rag.ingestion_queue q
    where q.job_id = _job.job_id and q.worker_id = _give_back_jobs.worker_id;
  end loop;
end
$plpgsql$;
comment on function rag._give_back_jobs(integer) is 'jobs a worker claimed and did not get to, as if it never had';

create or replace function rag._source_content(source_id integer, source_key text) returns bytea
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Whoever holds the table must not hold up other sources.
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
                 rag._column_type(_source.relation, _source.key_column))
  into _content using _source_content.source_key;
  return _content;
end
$plpgsql$;
comment on function rag._source_content(integer, text) is 'the document itself, of a source that keeps it in a column';

create or replace function rag._fingerprint(sha256 bytea, title text, language text, pipeline rag.pipelines) returns bytea
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select sha256(_fingerprint.sha256 || convert_to(json_build_array(
    -- Raise the number when extraction, chunking or text analysis changes what comes out of the same file.
    2,
    title, language, encode(m.sha256, 'hex'), pipeline.chunk_strategy, pipeline.chunk_size, pipeline.chunk_overlap,
    pipeline.chunk_unit, pipeline.embed_template, pipeline.text_search_config)::text, 'UTF8'))
  from rag.models m where m.name = pipeline.model
$sql$;
comment on function rag._fingerprint(bytea, text, text, rag.pipelines) is 'sha256 over all that a document''s chunks depend on';

create or replace function rag._notify_status(job rag.ingestion_queue, status text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Off unless asked for: every NOTIFY makes all commits of the server take turns.
  select pg_notify('document_status', json_build_object(
    'job_id', job.job_id, 'source_id', job.source_id, 'document_id', job.document_id, 'status', status, 'attempts', job.attempts)::text)
  where rag.get('status_notifications') = 'on'
$sql$;
comment on function rag._notify_status(rag.ingestion_queue, text) is 'tells channel document_status how an attempt ended: done, unchanged, superseded, discarded, queued (failed, tried again) or dead';

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
  -- The document is locked before its job, by everyone, or they could wait for each other.
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
comment on function rag._fenced_job(bigint, integer, bigint) is 'the job, with its document locked, if it is still this worker''s and the document still that of the claim; else null, and an outdated job is over';

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
     and v.fingerprint = rag._fingerprint(_finish_if_unchanged.sha256, d.title, d.language, p);
  if not found then
    return false;
  end if;
  _job := rag._fenced_job(_finish_if_unchanged.job_id, _finish_if_unchanged.worker_id, _finish_if_unchanged.generation);
  if _job.job_id is null then
    return true;
  end if;

  select * into strict _document from rag.documents d where d.source_id = _job.source_id and d.document_id = _job.document_id;
  update rag.documents d
     set status = 'completed', error_code = null, last_error = null, error_hint = null, processed_at = now()
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
comment on function rag._finish_if_unchanged(bigint, integer, bigint, bytea) is 'ends a job whose document has the chunks it would get; false where there is work to do';

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
     -- Lengths in tokens are those of a model, and so is what sentences mean; a template takes room from the content.
     and ((p.chunk_unit = 'characters' and p.chunk_strategy <> 'semantic') or p.model = wanted.model)
     -- What is read of pictures is another matter.
     and (p.ocr = wanted.ocr or not d.extracted ?| '{pages_without_text,pages_recognised}')
    -- Of this generation: what another pipeline took from the very state that the job is for.
    join rag.document_versions v on v.source_id = d.source_id and v.document_id = d.document_id
     and v.pipeline_id = p.pipeline_id and v.state = 'ready' and v.generation = d.generation and v.sha256 = d.sha256
    where q.job_id = _same_cut.job_id and q.operation <> 'reembed'
    order by p.state <> 'active', p.pipeline_id
    limit 1
  )
  select c.content, c.page_number, c.section, coalesce(t.title, t.extracted ->> 'title'), encode(t.sha256, 'hex'), t.file_size, t.mime_type, t.extracted::json
  from cut t
  join rag.document_chunks c on c.source_id = t.source_id and c.document_id = t.document_id and c.pipeline_id = t.pipeline_id
  order by c.chunk_index
$sql$;
comment on function rag._same_cut(bigint) is 'the passages of a job''s document as another pipeline of the same chunking has them, so that its file need not be read again; none where there are none';

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
begin
  if _job.job_id is null then
    return 'superseded';
  end if;
  select * into strict _pipeline from rag.pipelines p where p.pipeline_id = _job.pipeline_id;
  select * into strict _document from rag.documents d where d.source_id = _job.source_id and d.document_id = _job.document_id;
  select s.average_length into strict _average from rag._pipeline_statistics s where s.pipeline_id = _job.pipeline_id;
  _language := rag._language_code(coalesce(_document.language, _store_document.document #>> '{extracted,language}'));
  _config := rag._text_search_config(_language, _pipeline.text_search_config);
  perform rag._retire_version(_job.source_id, _job.document_id, _job.pipeline_id);

  with incoming as materialized (
    select i.*, t.tsv, decode(i.hash, 'hex') as content_hash
    from json_to_recordset(_store_document.chunks)
      as i (chunk_index integer, content text, char_count integer, token_count integer,
            page_number integer, section text, hash text, indexed_text text, embedding text)
    -- Offset: evaluated once, though used more often.
    cross join lateral (select rag._analyze(coalesce(i.indexed_text, i.content), _config) as tsv offset 0) t
  ), old as materialized (
    select c.chunk_index, c.content_hash, c.embedding, c.page_number, c.section, c.tags, c.tenant_id,
           c.language, c.text_search_config, c.content_tsv
    from rag.document_chunks c
    where c.pipeline_id = _job.pipeline_id and c.source_id = _job.source_id and c.document_id = _job.document_id
  ), kept as materialized (
    -- The same in the same place is not even written, which spares the indexes.
    select i.chunk_index
    from incoming i
    join old o on o.chunk_index = i.chunk_index and o.content_hash = i.content_hash
              and o.page_number is not distinct from i.page_number and o.section is not distinct from i.section
    where o.tags is not distinct from _document.tags and o.tenant_id is not distinct from _document.tenant_id
      and o.language is not distinct from _language and o.text_search_config = _config
      -- Not so where it was analysed by a version before.
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
      -- Counted, so that they are gone before their chunk_index is taken again.
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
          rag._fingerprint(_sha256, _document.title, _document.language, _pipeline), _total, _reused, _tokens,
          _job.started_at, extract(epoch from clock_timestamp() - _job.started_at) * 1000);
  update rag.documents d
     set status       = case when _pipeline.state = 'active' then 'completed' else d.status end,
         chunks       = case when _pipeline.state = 'active' then _total else d.chunks end,
         error_code   = case when _pipeline.state = 'active' then null else d.error_code end,
         last_error   = case when _pipeline.state = 'active' then null else d.last_error end,
         error_hint   = case when _pipeline.state = 'active' then null else d.error_hint end,
         started_at   = case when _pipeline.state = 'active' then _job.started_at else d.started_at end,
         processed_at = case when _pipeline.state = 'active' then now() else d.processed_at end,
         sha256       = _sha256,
         -- The row was looked at again, and it is its file that has changed.
         updated_at   = case when _job.priority < 0 and d.sha256 <> _sha256 then now() else d.updated_at end,
         file_size    = (_store_document.document ->> 'size')::bigint,
         mime_type    = _store_document.document ->> 'mime_type',
         extracted    = (_store_document.document -> 'extracted')::jsonb
   where d.source_id = _job.source_id and d.document_id = _job.document_id;
  perform rag._finish_job(_job, 'done');
  return 'done';
end
$plpgsql$;
comment on function rag._store_document(bigint, integer, bigint, json, json) is 'swaps in the chunks of a job''s document and ends the job, in one transaction; returns done, or superseded where the document changed meanwhile and nothing was stored';

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
comment on function rag._fail_job(bigint, integer, bigint, text, text, text, text, text) is 'records the failure of a job in a transaction of its own; returns queued (it is tried again), dead or superseded';
