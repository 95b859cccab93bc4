-- Claims: which worker gets which job, and how the jobs of a dead worker are found.
--
-- A worker's session holds the advisory lock (rag._lock_class(), worker_id) for as long as it lives.
-- The lock proves that the worker is alive: it goes with the session, so no lease has to expire.
--
-- Jobs that were never tried wait in lanes, one for each priority and tenant. A worker looks up where
-- each lane begins (rag._lanes()), then takes from the lanes of the highest priority in turn. A tenant
-- with a million jobs therefore delays nobody else. The worker remembers its place in each lane, so it
-- never reads the dead rows of finished jobs again, which vacuum cannot remove while a transaction is open.
-- Jobs that were tried before wait in one line, ordered by time. They are claimed alone, one for every few
-- batches: neither line starves the other, and a job that kills its worker takes no other job with it again.

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
comment on function rag._free_jobs_of_dead_workers(boolean) is
  'makes jobs of vanished workers claimable again, or dead after their attempts';

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

create or replace function rag._claim_jobs(worker_id integer, priority smallint, tenant_id bigint, from_job bigint, max_jobs integer)
  returns table (job rag.ingestion_queue, document rag.documents, has_content boolean)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- One plan, whatever the statistics, which are of another moment than the queue: by the index of the lanes,
  -- without a join (offset keeps the subquery apart), so that nothing passes over what is not of the lane.
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off
as $plpgsql$
declare
  _job rag.ingestion_queue;
begin
  for _job in
    select q.*
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
    return query select * from rag._claim(_job, _claim_jobs.worker_id);
  end loop;
end
$plpgsql$;
comment on function rag._claim_jobs(integer, smallint, bigint, bigint, integer) is
  'gives a worker the next jobs of a lane, with their attempt counted; the caller commits before the work';

create or replace function rag._claim_retry(worker_id integer)
  returns table (job rag.ingestion_queue, document rag.documents, has_content boolean)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- As in rag._claim_jobs().
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off
as $plpgsql$
declare
  _job rag.ingestion_queue;
begin
  select q.* into _job
    from rag.ingestion_queue q
   where q.status = 'queued' and q.attempts > 0 and q.run_at <= now()
     and not exists (select from rag.ingestion_queue r
                     where r.status = 'running'
                       and (r.source_id, r.document_id, r.pipeline_id) = (q.source_id, q.document_id, q.pipeline_id)
                     offset 0)
   order by q.run_at, q.job_id
   limit 1
     for update skip locked;
  if found then
    return query select * from rag._claim(_job, _claim_retry.worker_id);
  end if;
end
$plpgsql$;
comment on function rag._claim_retry(integer) is 'gives a worker the one job, tried before, that has been due the longest';

create or replace function rag._claim(waiting rag.ingestion_queue, worker_id integer)
  returns table (job rag.ingestion_queue, document rag.documents, has_content boolean)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- As in rag._claim_jobs(); what is joined is one row by its key.
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
as $plpgsql$
declare
  _job rag.ingestion_queue;
begin
  update rag.ingestion_queue q
     set status = 'running', worker_id = _claim.worker_id, attempts = q.attempts + 1, started_at = now()
   where q.job_id = (_claim.waiting).job_id
  returning q.* into _job;
  return query
    select _job, d, s.content_column is not null
      from rag.documents d
      join rag.sources s on s.source_id = d.source_id
     where d.source_id = _job.source_id and d.document_id = _job.document_id;
end
$plpgsql$;
comment on function rag._claim(rag.ingestion_queue, integer) is
  'makes a waiting job, locked by the caller, a worker''s own; returns it with its document';

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
