-- Status: views of what is going on. None reads a large table: what would have to be counted there is taken from the
-- planner's statistics.

-- Security invoker: the row security of the tables applies to whoever asks.
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
  select case when not s.assigns_ids then k.key::bigint end, null, null, null, p.model, p.chunk_size, p.chunk_overlap,
         'pending', 0, 0, null, null, 0, null, null, c.created_at, c.created_at, s.name, k.key
    from rag._changes c
    join rag.sources s on s.source_id = c.source_id
    left join rag.pipelines p on p.state = 'active'
    cross join unnest(c.keys) as k (key)
   where not exists (select from rag.documents d where d.source_id = c.source_id and d.source_key = k.key);
comment on view rag.ingestion_log is
  'one row a document: status (pending, processing, completed, failed) and, where it failed, why and what to do. Rows of a large statement'
  ' have nothing but their key until a worker comes to them';
create or replace function rag._row_count(relation regclass) returns bigint
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _rows bigint;
begin
  select c.reltuples into _rows from pg_class c where c.oid = relation and c.reltuples >= 0
    and pg_relation_size(relation) > 32000000;
  if not found then
    execute format('select count(*) from %s', relation) into _rows;
  end if;
  return _rows;
end
$plpgsql$;
comment on function rag._row_count(regclass) is 'rows of a table: counted up to 32 MB, beyond that as of its last vacuum or analyze';

create or replace function rag._process_memory_bytes(pid integer) returns bigint
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _children text;
begin
  -- Where the kernel does not list children, only the process itself is counted.
  _children := coalesce(pg_read_file(format('/proc/%1$s/task/%1$s/children', pid), 0, 10000, true), '');
  -- Only private memory: shared buffers and the model's mapped file are shared by all.
  return (select sum(1024 * substring(pg_read_file(format('/proc/%s/status', p), 0, 10000, true)
                                      from 'RssAnon:[[:space:]]+([0-9]+) kB')::bigint)
          from unnest(string_to_array(trim(pid || ' ' || _children), ' ')) p);
exception when others then
  return null;
end
$plpgsql$;
comment on function rag._process_memory_bytes(integer) is
  'private memory of a process of the server and its child processes, null where it cannot be told';

create or replace function rag._queue_counts(
    out waiting bigint, out retrying bigint, out running bigint, out dead bigint, out noted bigint, out oldest timestamptz)
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Partial indexes find all but the waiting ones, which are estimated.
  select greatest(rag._row_count('rag.ingestion_queue') - r.retrying - r.running - r.dead, 0),
         r.retrying, r.running, r.dead, r.noted, r.oldest
  from (select (select count(*) from rag.ingestion_queue q where q.status = 'queued' and q.attempts > 0) as retrying,
               (select count(*) from rag.ingestion_queue q where q.status = 'running') as running,
               (select count(*) from rag.ingestion_queue q where q.status = 'dead') as dead,
               (select coalesce(sum(cardinality(c.keys)), 0) from rag._changes c) as noted,
               -- Without those that are tried again: a file that has been missing for a day needs no more workers.
               least((select min(q.run_at) from rag._lanes() l join rag.ingestion_queue q on q.job_id = l.job_id),
                     (select min(c.created_at) from rag._changes c)) as oldest) r
$sql$;
comment on function rag._queue_counts() is
  'jobs by what they wait for; noted: changed rows that are not jobs yet; oldest: since when the first of those waits that were never'
  ' tried';

create or replace function rag._status(
    out documents bigint, out chunks bigint, out waiting bigint, out running bigint, out retrying bigint, out dead bigint,
    out oldest_wait interval, out workers bigint, out worker_memory text, out documents_per_minute numeric, out tokens_per_s numeric,
    out time_left interval, out pipeline text, out model text, out last_error text, out last_error_at timestamptz)
  language sql volatile
  -- SECURITY DEFINER: whoever runs a server may see how it is without reading what is in it.
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$
  select rag._row_count('rag.documents'),
         (select coalesce(sum(rag._row_count(t.relid)), 0)::bigint
          from pg_partition_tree('rag.document_chunks') t
          where t.isleaf and t.relid = to_regclass('rag.' || rag._partition(p.pipeline_id))),
         q.waiting + q.noted, q.running, q.retrying, q.dead,
         date_trunc('second', clock_timestamp() - q.oldest), w.workers, pg_size_pretty(w.memory),
         round(v.documents / 5.0, 1), round(v.tokens / 300.0),
         date_trunc('second', (q.waiting + q.noted) / nullif(v.documents, 0)::float * interval '5 minutes'),
         p.name, p.model, e.error, e.failed_at
  from rag._queue_counts() q
  cross join (select count(*) as workers, sum(rag._process_memory_bytes(w.pid)) as memory
              from rag.workers w where rag._worker_is_alive(w.worker_id)) w
  cross join (select (select count(*) from rag.job_history h where h.finished_at > now() - interval '5 minutes') as documents,
                     (select coalesce(sum(v.tokens), 0) from rag.document_versions v
                      where v.finished_at > now() - interval '5 minutes') as tokens) v
  left join rag.pipelines p on p.state = 'active'
  left join lateral (select q.error, q.failed_at from rag.ingestion_queue q
                     where q.status = 'dead' order by q.failed_at desc, q.job_id limit 1) e on true
$sql$;
comment on function rag._status() is 'the row of rag.status';

create or replace view rag.status as select * from rag._status();
comment on view rag.status is
  'how it is going, in one row: best read by \gx in psql. Takes milliseconds: numbers of documents, chunks and waiting jobs are counted'
  ' while their table has up to 32 MB, and beyond that are those of its last vacuum or analyze';
comment on column rag.status.documents is 'in all sources';
comment on column rag.status.chunks is 'of the active pipeline';
comment on column rag.status.waiting is 'jobs that were never tried, and changed rows that are not jobs yet';
comment on column rag.status.running is 'jobs that a worker has';
comment on column rag.status.retrying is 'jobs that failed and are tried again';
comment on column rag.status.dead is 'jobs that are not tried again: see rag.dead_letters';
comment on column rag.status.oldest_wait is 'how long the oldest of the waiting jobs has been waiting';
comment on column rag.status.workers is 'workers that are alive: see rag.worker_activity';
comment on column rag.status.worker_memory is 'private memory of all workers and their child processes';
comment on column rag.status.documents_per_minute is 'finished in the last 5 minutes';
comment on column rag.status.tokens_per_s is 'embedded in the last 5 minutes';
comment on column rag.status.time_left is 'until nothing waits, at the speed of the last 5 minutes';
comment on column rag.status.last_error is 'of the latest dead job';

create or replace function rag._progress()
  returns table (source text, pipeline text, documents bigint, ready bigint, waiting bigint, running bigint, failed bigint, percent numeric)
  language sql stable
  -- SECURITY DEFINER: as for rag._status().
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$
  with jobs as (
    select q.source_id, q.pipeline_id, count(*) filter (where q.status = 'queued' and q.attempts = 0) as waiting,
           count(*) filter (where q.status = 'running') as running,
           count(*) filter (where q.status = 'dead' or q.status = 'queued' and q.attempts > 0) as failed
    from rag.ingestion_queue q group by 1, 2
  ), noted as (
    select c.source_id, sum(cardinality(c.keys)) as keys from rag._changes c group by 1
  ), documents as (
    select d.source_id, count(*) as documents from rag.documents d group by 1
  ), ready as (
    select v.source_id, v.pipeline_id, count(*) as ready from rag.document_versions v where v.state = 'ready' group by 1, 2
  )
  select s.name, p.name, t.documents, t.ready, t.waiting, t.running, t.failed,
         round(100.0 * greatest(least(t.ready, t.documents - t.waiting - t.running - t.failed), 0) / nullif(t.documents, 0), 1)
  from rag.sources s
  cross join rag.pipelines p
  left join documents d on d.source_id = s.source_id
  left join ready r on r.source_id = s.source_id and r.pipeline_id = p.pipeline_id
  left join jobs j on j.source_id = s.source_id and j.pipeline_id = p.pipeline_id
  left join noted n on n.source_id = s.source_id
  cross join lateral (select coalesce(d.documents, 0) as documents, coalesce(r.ready, 0) as ready,
                             coalesce(j.waiting, 0) + coalesce(n.keys, 0)::bigint as waiting, coalesce(j.running, 0) as running,
                             coalesce(j.failed, 0) as failed) t
  where p.state <> 'superseded'
  order by s.name, p.pipeline_id
$sql$;
comment on function rag._progress() is 'the rows of rag.progress';

create or replace view rag.progress as select * from rag._progress();
comment on view rag.progress is
  'how far each source is in each pipeline that is filled: \watch 2 shows it go. Counts documents and jobs, which takes 0.2 s for each'
  ' million';
comment on column rag.progress.ready is 'documents that can be found, be it as they were before their last change';
comment on column rag.progress.waiting is 'jobs that were never tried, and changed rows that are not jobs yet';
comment on column rag.progress.failed is 'dead, or tried again later: see rag.failures';
comment on column rag.progress.percent is 'documents that are as they should be';

create or replace view rag.failures with (security_invoker = true) as
  select f.job_id, f.source, f.document_id, f.stage, f.error_code, f.attempts, f.next_try, f.error, f.hint
  from (
    select q.job_id, s.name as source, q.document_id, q.stage, q.error_code, q.attempts,
           case when q.status = 'queued' then date_trunc('second', q.run_at) end as next_try, q.error, q.error_hint as hint, q.failed_at
      from rag.ingestion_queue q
      left join rag.sources s on s.source_id = q.source_id
     where q.status = 'dead' or q.status = 'queued' and q.attempts > 0 and q.error is not null
    union all
    select null, s.name, null, 'source', null, null, null, s.problem,
           'See the row sources of: select * from rag.check(); What could not be followed meanwhile is found by: call rag.maintain();',
           'infinity'
      from rag.sources s
     where s.problem is not null
  ) f
  order by f.failed_at desc, f.job_id;
comment on view rag.failures is
  'what failed at the last attempt, the latest first: documents that are tried again (next_try says when), those that are not, of which'
  ' rag.dead_letters knows more, and before all of them, without a document, sources whose changes cannot be followed';
