-- How it is going. Nothing here reads a large table: what would have to be counted is estimated from
-- the server's statistics where the table is large.

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
  -- Where the kernel does not list children, this is only the session's own.
  _children := coalesce(pg_read_file(format('/proc/%1$s/task/%1$s/children', pid), 0, 10000, true), '');
  -- Private memory alone: shared buffers and the model's mapped file are in it once for all.
  return (select sum(1024 * substring(pg_read_file(format('/proc/%s/status', p), 0, 10000, true) from 'RssAnon:\s+(\d+) kB')::bigint)
          from unnest(string_to_array(trim(pid || ' ' || _children), ' ')) p);
exception when others then
  return null;
end
$plpgsql$;
comment on function rag._process_memory_bytes(integer) is 'private memory of a process of the server and its child processes, null where it cannot be told';

create or replace function rag._queue_counts(out waiting bigint, out retrying bigint, out running bigint, out dead bigint, out noted bigint, out oldest timestamptz)
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  -- All but the waiting are found by partial indexes, and are few.
  select greatest(rag._row_count('rag.ingestion_queue') - r.retrying - r.running - r.dead, 0), r.retrying, r.running, r.dead, r.noted, r.oldest
  from (select (select count(*) from rag.ingestion_queue q where q.status = 'queued' and q.attempts > 0) as retrying,
               (select count(*) from rag.ingestion_queue q where q.status = 'running') as running,
               (select count(*) from rag.ingestion_queue q where q.status = 'dead') as dead,
               (select coalesce(sum(cardinality(c.keys)), 0) from rag._changes c) as noted,
               -- Not of those that are tried again: a file that is missing for a day is no want of workers.
               least((select min(q.run_at) from rag._lanes() l join rag.ingestion_queue q on q.job_id = l.job_id),
                     (select min(c.created_at) from rag._changes c)) as oldest) r
$sql$;
comment on function rag._queue_counts() is 'jobs by what they wait for; noted: changed rows that are not jobs yet; oldest: since when the first of those waits that were never tried';

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
          from pg_partition_tree('rag.document_chunks') t where t.isleaf and t.relid = to_regclass('rag.' || rag._partition(p.pipeline_id))),
         q.waiting + q.noted, q.running, q.retrying, q.dead,
         date_trunc('second', clock_timestamp() - q.oldest), w.workers, pg_size_pretty(w.memory),
         round(v.documents / 5.0, 1), round(v.tokens / 300.0),
         date_trunc('second', (q.waiting + q.noted) / nullif(v.documents, 0)::float * interval '5 minutes'),
         p.name, p.model, e.error, e.failed_at
  from rag._queue_counts() q
  cross join (select count(*) as workers, sum(rag._process_memory_bytes(w.pid)) as memory
              from rag.workers w where rag._worker_is_alive(w.worker_id)) w
  cross join (select (select count(*) from rag.job_history h where h.finished_at > now() - interval '5 minutes') as documents,
                     (select coalesce(sum(v.tokens), 0) from rag.document_versions v where v.finished_at > now() - interval '5 minutes') as tokens) v
  left join rag.pipelines p on p.state = 'active'
  left join lateral (select q.error, q.failed_at from rag.ingestion_queue q where q.status = 'dead' order by q.failed_at desc, q.job_id limit 1) e on true
$sql$;
comment on function rag._status() is 'the row of rag.status';

create or replace view rag.status as select * from rag._status();
comment on view rag.status is 'how it is going, in one row: best read by \gx in psql. Takes milliseconds: numbers of documents, chunks and waiting jobs are counted while their table has up to 32 MB, and beyond that are those of its last vacuum or analyze';
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
comment on view rag.progress is 'how far each source is in each pipeline that is filled: \watch 2 shows it go. Counts documents and jobs, which takes 0.2 s for each million';
comment on column rag.progress.ready is 'documents that can be found, be it as they were before their last change';
comment on column rag.progress.waiting is 'jobs that were never tried, and changed rows that are not jobs yet';
comment on column rag.progress.failed is 'dead, or tried again later: see rag.failures';
comment on column rag.progress.percent is 'documents that are as they should be';

create or replace view rag.failures with (security_invoker = true) as
  select q.job_id, s.name as source, q.document_id, q.stage, q.error_code, q.attempts,
         case when q.status = 'queued' then date_trunc('second', q.run_at) end as next_try, q.error, q.error_hint as hint
    from rag.ingestion_queue q
    left join rag.sources s on s.source_id = q.source_id
   where q.status = 'dead' or q.status = 'queued' and q.attempts > 0 and q.error is not null
   order by q.failed_at desc, q.job_id;
comment on view rag.failures is 'documents that failed at the last attempt, the latest first: those that are tried again (next_try says when) and those that are not, of which rag.dead_letters knows more';

------------------------------------------------------------------------------------------------
-- Metrics
------------------------------------------------------------------------------------------------

create or replace function rag._count(worker_id integer, counters json) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  insert into rag._counters as k (worker_id, metric, label, count, sum_s, buckets)
  select _count.worker_id, c.metric, c.label, c.count, coalesce(c.sum_s, 0), coalesce(c.buckets, '{}')
  from json_to_recordset(counters) as c (metric text, label text, count bigint, sum_s float, buckets bigint[])
  on conflict on constraint _counters_pkey do update
    set count = k.count + excluded.count, sum_s = k.sum_s + excluded.sum_s,
        buckets = array(select coalesce(o, 0) + coalesce(n, 0) from unnest(k.buckets, excluded.buckets) with ordinality u (o, n, i) order by i)
$sql$;
comment on function rag._count(integer, json) is 'adds to the counters of a worker';

create or replace function rag._keep_counters() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- What a worker has counted outlives it, however it ended.
  insert into rag._counters as k (worker_id, metric, label, count, sum_s, buckets)
  select 0, c.metric, c.label, c.count, c.sum_s, c.buckets
  from (select c.metric, c.label, c.count, c.sum_s, c.buckets from rag._counters c where c.worker_id = old.worker_id
        union all
        values ('chunks', '', old.chunks::bigint, 0::float, '{}'::bigint[]), ('tokens', '', old.tokens, 0, '{}')) c
  order by c.metric, c.label
  on conflict on constraint _counters_pkey do update
    set count = k.count + excluded.count, sum_s = k.sum_s + excluded.sum_s,
        buckets = array(select coalesce(o, 0) + coalesce(n, 0) from unnest(k.buckets, excluded.buckets) with ordinality u (o, n, i) order by i);
  delete from rag._counters c where c.worker_id = old.worker_id;
  return null;
end
$plpgsql$;

create or replace trigger keep_counters after delete on rag.workers
  for each row execute function rag._keep_counters();

create or replace function rag._metric_bounds_s() returns float[]
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select '{0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,30,60,300}'::float[] $sql$;
comment on function rag._metric_bounds_s() is 'upper bounds of the histograms'' buckets; ragstone/worker/meter.py says the same';

create or replace function rag._metric_definitions() returns table (place bigint, name text, kind text, help text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select row_number() over (), v.*
  from (values
    ('ragstone_jobs_total',             'counter',   'Attempts at documents that ended, by outcome.'),
    ('ragstone_stage_duration_seconds', 'histogram', 'Time of a worker for one document, by stage.'),
    ('ragstone_chunks_total',           'counter',   'Chunks stored.'),
    ('ragstone_tokens_total',           'counter',   'Tokens embedded for chunks.'),
    ('ragstone_jobs',                   'gauge',     'Jobs in the queue, by state.'),
    ('ragstone_oldest_job_age_seconds', 'gauge',     'How long the oldest job that was never tried has been waiting, 0 where none waits.'),
    ('ragstone_documents',              'gauge',     'Documents of all sources.'),
    ('ragstone_chunks',                 'gauge',     'Chunks of each pipeline.'),
    ('ragstone_index_bytes',            'gauge',     'Size of a pipeline''s chunks with their indexes.'),
    ('ragstone_workers',                'gauge',     'Workers that are alive, by state.'),
    ('ragstone_worker_memory_bytes',    'gauge',     'Private memory of the workers that are alive and their child processes.'),
    ('ragstone_query_cache_hits_total', 'counter',   'Queries whose embedding came from the cache.'),
    ('ragstone_query_cache_misses_total','counter',  'Queries whose embedding had to be made.'),
    ('ragstone_searches_total',         'counter',   'Searches; only where track_functions is on.'),
    ('ragstone_search_seconds_total',   'counter',   'Time of all searches; only where track_functions is on.')) v
$sql$;
comment on function rag._metric_definitions() is 'what rag.metrics() gives, in its order';

create or replace function rag._label(value text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select replace(replace(replace(value, '\', '\\'), '"', '\"'), e'\n', '\n') $sql$;
comment on function rag._label(text) is 'a label''s value as the text format wants it';

create or replace function rag._counter_totals() returns table (metric text, label text, count bigint, sum_s float, cumulated bigint[])
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- A standby cannot even open an unlogged table.
  if not pg_is_in_recovery() then
    return query
      select c.metric, c.label, sum(c.count)::bigint, sum(c.sum_s),
             array(select sum(b.n) over (order by b.i)::bigint
                   from (select u.i, sum(u.n) as n from rag._counters k, unnest(k.buckets) with ordinality u (n, i)
                         where k.metric = c.metric and k.label = c.label group by u.i) b order by b.i)
        from rag._counters c group by c.metric, c.label;
  end if;
end
$plpgsql$;
comment on function rag._counter_totals() is 'counters of all workers together; cumulated: durations up to each of rag._metric_bounds_s()';

create or replace function rag._cache_totals() returns table (metric text, count bigint)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if not pg_is_in_recovery() then
    return query
      select v.metric, v.count from rag.query_cache c
      cross join lateral (values ('ragstone_query_cache_hits_total', c.hits), ('ragstone_query_cache_misses_total', c.misses)) v (metric, count);
  end if;
end
$plpgsql$;
comment on function rag._cache_totals() is 'hits and misses of the query cache, nothing on a standby';

create or replace function rag._samples() returns table (metric text, place text, line text)
  language sql volatile
  set search_path = pg_catalog, pg_temp
as $sql$
  with counters as materialized (
    select * from rag._counter_totals()
  ), queue as materialized (
    select * from rag._queue_counts()
  ), workers as materialized (
    select w.* from rag.workers w where rag._worker_is_alive(w.worker_id)
  )
  select 'ragstone_jobs_total', '', format('{outcome="%s"} %s', o, coalesce(c.count, 0))
    from unnest('{done,unchanged,superseded,retried,dead}'::text[]) o left join counters c on c.metric = 'jobs' and c.label = o
  union all
  select 'ragstone_stage_duration_seconds', l.place, l.line
    from counters c
   cross join lateral (
     select format('%s %s', c.label, 100 + u.i), format('_bucket{stage="%s",le="%s"} %s', rag._label(c.label), coalesce(u.bound::text, '+Inf'), c.cumulated[u.i])
       from unnest(rag._metric_bounds_s() || null::float) with ordinality u (bound, i)
     union all
     values (c.label || ' 998', format('_sum{stage="%s"} %s', rag._label(c.label), c.sum_s)),
            (c.label || ' 999', format('_count{stage="%s"} %s', rag._label(c.label), c.count))) l (place, line)
   where c.metric = 'stage'
  union all
  select 'ragstone_' || m || '_total', '', format(' %s', coalesce(c.count, 0) + coalesce((select case m when 'chunks' then sum(w.chunks) else sum(w.tokens) end from rag.workers w), 0))
    from unnest('{chunks,tokens}'::text[]) m left join counters c on c.metric = m
  union all
  select 'ragstone_jobs', '', format('{state="%s"} %s', v.state, v.jobs)
    from queue q cross join lateral (values ('waiting', q.waiting), ('noted', q.noted), ('running', q.running), ('retrying', q.retrying), ('dead', q.dead)) v (state, jobs)
  union all
  select 'ragstone_oldest_job_age_seconds', '', format(' %s', coalesce(round(extract(epoch from clock_timestamp() - q.oldest), 3), 0)) from queue q
  union all
  select 'ragstone_documents', '', format(' %s', rag._row_count('rag.documents'))
  union all
  select v.metric, '', format('{pipeline="%s",state="%s"} %s', rag._label(p.name), p.state, v.value)
    from rag.pipelines p
   cross join lateral (select to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) as relation) r
   cross join lateral (values ('ragstone_chunks', rag._row_count(r.relation)), ('ragstone_index_bytes', pg_total_relation_size(r.relation))) v (metric, value)
   where r.relation is not null
  union all
  select 'ragstone_workers', '', format('{state="%s"} %s', s, (select count(*) from workers w where w.state = s))
    from unnest('{starting,idle,working,paused,short of memory}'::text[]) s
  union all
  select 'ragstone_worker_memory_bytes', '', format(' %s', coalesce((select sum(rag._process_memory_bytes(w.pid)) from workers w), 0))
  union all
  select c.metric, '', format(' %s', c.count) from rag._cache_totals() c
  union all
  select v.metric, '', format('{function="%s"} %s', f.funcname, v.value)
    from (select f.funcname, sum(f.calls) as calls, sum(f.total_time) as ms from pg_stat_user_functions f
           where f.schemaname = 'rag' and f.funcname in ('search_documents', 'find_documents') group by 1) f
   cross join lateral (values ('ragstone_searches_total', f.calls::text), ('ragstone_search_seconds_total', (f.ms / 1000)::text)) v (metric, value)
$sql$;
comment on function rag._samples() is 'the lines of rag.metrics() without the names at their beginning';

create or replace function rag.metrics() returns text
  language sql volatile
  -- SECURITY DEFINER: as for rag._status().
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$
  select string_agg(format(e'# HELP %1$s %2$s\n# TYPE %1$s %3$s\n%4$s', d.name, d.help, d.kind, s.lines), '' order by d.place)
  from rag._metric_definitions() d
  join (select s.metric, string_agg(s.metric || s.line || e'\n', '' order by s.place, s.line) as lines from rag._samples() s group by 1) s
    on s.metric = d.name
$sql$;
comment on function rag.metrics() is 'counters, gauges and histograms of this database in the text format of Prometheus: psql -XAtqc ''select rag.metrics()''. Takes milliseconds. Counters begin at 0 after a crash of the server';
