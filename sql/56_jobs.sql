-- Jobs, for people: see why they failed, retry, discard, cancel and prioritize them.

create or replace view rag.dead_letters with (security_invoker = true) as
  select q.job_id, s.name as source, q.document_id, p.name as pipeline, q.failure, q.stage, q.error_code, q.attempts,
         q.failed_at, q.error, q.error_hint as hint, d.file_path, d.source_key, q.created_at
    from rag.ingestion_queue q
    left join rag.documents d on d.source_id = q.source_id and d.document_id = q.document_id
    left join rag.sources s on s.source_id = q.source_id
    left join rag.pipelines p on p.pipeline_id = q.pipeline_id
   where q.status = 'dead'
   order by q.failed_at desc, q.job_id;
comment on view rag.dead_letters is
  'jobs that are not tried again: why, at which stage, after how many attempts; see rag.retry() and rag.discard()';
comment on column rag.dead_letters.failure is
  'permanent: the same document fails again; transient: the attempts are used up; poison: its worker died; cancelled: by rag.cancel()';
comment on column rag.dead_letters.stage is 'read, extract, chunk, embed, store, or worker where it died';
comment on column rag.dead_letters.error_code is 'class of the error, to filter by; a SQLSTATE where the server raised it';
comment on column rag.dead_letters.hint is 'what to do about it';

create or replace function rag.job(job_id bigint)
  returns table (job_id bigint, source text, document_id bigint, pipeline text, operation text, status text, attempts integer,
                 stage text, error text, hint text, created_at timestamptz, started_at timestamptz, finished_at timestamptz,
                 next_run_at timestamptz)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select j.job_id, s.name, j.document_id, p.name, j.operation, j.status, j.attempts, j.stage, j.error, j.error_hint,
         j.created_at, j.started_at, j.finished_at, j.run_at
  from (
    select q.job_id, q.source_id, q.document_id, q.pipeline_id, q.operation, q.status, q.attempts::integer, q.stage, q.error,
           q.error_hint, q.created_at, q.started_at, null::timestamptz as finished_at,
           case when q.status = 'queued' then q.run_at end as run_at
    from rag.ingestion_queue q where q.job_id = $1
    union all
    select h.job_id, h.source_id, h.document_id, h.pipeline_id, h.operation, h.outcome, h.attempts::integer, null, null, null,
           h.created_at, h.started_at, h.finished_at, null
    from rag.job_history h where h.job_id = $1
  ) j
  left join rag.sources s on s.source_id = j.source_id
  left join rag.pipelines p on p.pipeline_id = j.pipeline_id
$sql$;
comment on function rag.job(bigint) is
  'one job, whether it waits, runs, is dead (queued, running, dead) or finished (done, unchanged, superseded); no row for an unknown id';

create or replace function rag._lock_jobs(
    statuses text[], job_id bigint, source text default null, pipeline text default null, stage text default null,
    error_code text default null)
  returns setof rag.ingestion_queue
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job       rag.ingestion_queue;
  _candidate rag.ingestion_queue;
begin
  if _lock_jobs.job_id is not null
     and not exists (select from rag.ingestion_queue q where q.job_id = _lock_jobs.job_id and q.status = any (statuses)) then
    raise exception 'there is no job % that is %', _lock_jobs.job_id, array_to_string(statuses, ' or ')
      using errcode = 'undefined_object',
            hint    = format('Where it is: select status, error from rag.job(%s);', _lock_jobs.job_id);
  end if;
  for _candidate in
    select q.*
      from rag.ingestion_queue q
      left join rag.sources s on s.source_id = q.source_id
      left join rag.pipelines p on p.pipeline_id = q.pipeline_id
     where q.status = any (statuses)
       and (_lock_jobs.job_id is null or q.job_id = _lock_jobs.job_id)
       and (_lock_jobs.source is null or s.name = _lock_jobs.source)
       and (_lock_jobs.pipeline is null or p.name = _lock_jobs.pipeline)
       and (_lock_jobs.stage is null or q.stage = _lock_jobs.stage)
       and (_lock_jobs.error_code is null or q.error_code = _lock_jobs.error_code)
     order by q.source_id, q.document_id, q.pipeline_id
  loop
    -- Of many jobs, those whose documents another transaction holds are skipped: to wait for one while
    -- holding others could deadlock with the application. A change that holds a document queues it anyway.
    if _lock_jobs.job_id is null then
      perform from rag.documents d
      where d.source_id = _candidate.source_id and d.document_id = _candidate.document_id
      for no key update skip locked;
    else
      perform from rag.documents d
      where d.source_id = _candidate.source_id and d.document_id = _candidate.document_id
      for no key update;
    end if;
    continue when not found;
    select * into _job from rag.ingestion_queue q
    where q.job_id = _candidate.job_id and q.status = any (statuses)
    for update;
    continue when not found;
    return next _job;
  end loop;
end
$plpgsql$;
comment on function rag._lock_jobs(text[], bigint, text, text, text, text) is
  'jobs in one of the states that match all that is given, locked after their documents; raises 42704 for a job_id that is none of them';

create or replace function rag.retry(
    job_id bigint default null, source text default null, pipeline text default null, stage text default null, error_code text default null)
  returns bigint
  language plpgsql
  -- SECURITY DEFINER: jobs are written by ragstone alone; who may steer them need not be able to forge them.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _group record;
  _count bigint := 0;
begin
  for _group in
    select j.source_id, j.pipeline_id, j.priority, array_agg(j.document_id) as document_ids
      from rag._lock_jobs('{dead,queued}', retry.job_id, retry.source, retry.pipeline, retry.stage, retry.error_code) j
     where j.status = 'dead' or j.attempts > 0
     group by j.source_id, j.pipeline_id, j.priority
  loop
    _count := _count + rag._enqueue(_group.source_id, _group.document_ids, priority => _group.priority, pipeline_id => _group.pipeline_id);
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag.retry(bigint, text, text, text, text) is
  'tries failed jobs again at once, with all their attempts: one by job_id, those of a source, pipeline, stage or error_code, or without'
  ' arguments all; dead ones as well as those that wait for their next attempt. Returns how many. Raises 42704 for a job_id that is'
  ' neither';

create or replace function rag.discard(
    job_id bigint default null, source text default null, pipeline text default null, stage text default null, error_code text default null)
  returns bigint
  language plpgsql
  -- SECURITY DEFINER: as for rag.retry().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job   rag.ingestion_queue;
  _count bigint := 0;
begin
  for _job in
    select * from rag._lock_jobs('{dead}', discard.job_id, discard.source, discard.pipeline, discard.stage, discard.error_code)
  loop
    -- A failed version of the present generation tells rag.check_consistency() that the document was given up.
    perform rag._note_failure(_job, _job.error)
     where not exists (select from rag.document_versions v
                         join rag.documents d on d.source_id = v.source_id and d.document_id = v.document_id
                        where (v.source_id, v.document_id, v.pipeline_id) = (_job.source_id, _job.document_id, _job.pipeline_id)
                          and v.generation = d.generation and v.state in ('ready', 'failed'));
    perform rag._finish_job(_job, 'discarded');
    _count := _count + 1;
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag.discard(bigint, text, text, text, text) is
  'takes dead letters away: one by job_id, those of a source, pipeline, stage or error_code, or without arguments all. Their documents'
  ' stay failed or rejected, with the reason, until their rows change; completed are those that are searchable as they are now. Returns how'
  ' many. Raises 42704 for a job_id that is not dead';

create or replace function rag.cancel(job_id bigint) returns text
  language plpgsql
  -- SECURITY DEFINER: as for rag.retry().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job rag.ingestion_queue;
begin
  if cancel.job_id is null then
    raise exception 'the job to cancel is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'Jobs are listed by: select job_id, document_id, status from rag.ingestion_queue;';
  end if;
  select * into _job from rag._lock_jobs('{queued,running}', cancel.job_id);
  -- A worker that is busy with the job finds that it is no longer its own, and stores nothing.
  return rag._record_failure(_job, 'cancelled', null, 'cancelled', format('cancelled by %s', session_user),
    format('To have it done after all: select rag.retry(%s);', cancel.job_id));
end
$plpgsql$;
comment on function rag.cancel(bigint) is
  'stops a job that waits or runs: it becomes a dead letter, and nothing of it is stored; what was searchable before stays. Returns dead,'
  ' or superseded where a newer job of the document waits and goes on. Raises 42704 for a job that neither waits nor runs';

create or replace function rag.prioritize(
    priority integer, job_id bigint default null, source text default null, pipeline text default null)
  returns bigint
  language plpgsql
  -- SECURITY DEFINER: as for rag.retry().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _job   rag.ingestion_queue;
  _count bigint := 0;
begin
  if prioritize.priority is null or prioritize.priority not between -100 and 100 then
    raise exception 'priority is from -100 to 100, not %', coalesce(prioritize.priority::text, 'null')
      using errcode = 'invalid_parameter_value',
            hint    = 'Higher is earlier: 0 is a live change, -10 a row from before its table was attached.';
  end if;
  for _job in select * from rag._lock_jobs('{queued}', prioritize.job_id, prioritize.source, prioritize.pipeline) loop
    update rag.ingestion_queue q set priority = prioritize.priority where q.job_id = _job.job_id;
    _count := _count + 1;
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag.prioritize(integer, bigint, text, text) is
  'sets the priority of waiting jobs, higher is earlier (0 live changes, -10 existing rows): one by job_id, those of a source or pipeline,'
  ' or all. Returns how many. Raises 42704 for a job_id that does not wait';

create or replace function rag.reembed(
    document_ids bigint[] default null, source text default null, tenant_id bigint default null, tags text[] default null,
    priority integer default -10)
  returns bigint
  language plpgsql
  -- SECURITY DEFINER: as for rag.retry().
  security definer
  set search_path = pg_catalog, pg_temp
  -- As in rag._set_document_state().
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set jit = off
as $plpgsql$
declare
  _sources   integer[];
  _documents bigint[];
  _group     record;
  _count     bigint := 0;
begin
  if reembed.document_ids is null then
    select array_agg(d.source_id), array_agg(d.document_id) into _sources, _documents from rag.documents d;
  else
    select array_agg(s.source_id), array_agg(i.document_id) into _sources, _documents
      from rag.sources s, (select distinct u.document_id from unnest(reembed.document_ids) u (document_id)) i;
  end if;
  for _group in
    select l.source_id, array_agg(l.document_id) as document_ids
      from (select d.source_id, d.document_id
              from unnest(_sources, _documents) m (source_id, document_id)
              join rag.documents d on d.source_id = m.source_id and d.document_id = m.document_id
              join rag.sources s on s.source_id = d.source_id
             where (reembed.source is null or s.name = reembed.source)
               and (reembed.tenant_id is null or d.tenant_id = reembed.tenant_id)
               and (reembed.tags is null or d.tags && reembed.tags)
               for no key update of d skip locked) l
     group by l.source_id
  loop
    _count := _count + rag._enqueue(_group.source_id, _group.document_ids, 'reembed', reembed.priority);
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag.reembed(bigint[], text, bigint, text[], integer) is
  'has documents read, split and embedded anew even where nothing has changed: those of document_ids, a source, a tenant, any of tags, or'
  ' all. Their present chunks are searched until then. Returns how many; documents that another transaction holds are left out, as are'
  ' rows not yet taken up';
