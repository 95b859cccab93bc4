-- Metrics in the format of Prometheus, and the counters behind them.

create or replace function rag._count(worker_id integer, counters json) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  insert into rag._counters as k (worker_id, metric, label, count, sum_s, buckets)
  select _count.worker_id, c.metric, c.label, c.count, coalesce(c.sum_s, 0), coalesce(c.buckets, '{}')
  from json_to_recordset(counters) as c (metric text, label text, count bigint, sum_s float, buckets bigint[])
  on conflict on constraint _counters_pkey do update
    set count = k.count + excluded.count, sum_s = k.sum_s + excluded.sum_s,
        buckets = array(select coalesce(o, 0) + coalesce(n, 0)
                        from unnest(k.buckets, excluded.buckets) with ordinality u (o, n, i) order by i)
$sql$;
comment on function rag._count(integer, json) is 'adds to the counters of a worker';

create or replace function rag._keep_counters() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- What a worker has counted is kept when the worker is gone, however it ended.
  insert into rag._counters as k (worker_id, metric, label, count, sum_s, buckets)
  select 0, c.metric, c.label, c.count, c.sum_s, c.buckets
  from (select c.metric, c.label, c.count, c.sum_s, c.buckets from rag._counters c where c.worker_id = old.worker_id
        union all
        values ('chunks', '', old.chunks::bigint, 0::float, '{}'::bigint[]), ('tokens', '', old.tokens, 0, '{}')) c
  order by c.metric, c.label
  on conflict on constraint _counters_pkey do update
    set count = k.count + excluded.count, sum_s = k.sum_s + excluded.sum_s,
        buckets = array(select coalesce(o, 0) + coalesce(n, 0)
                        from unnest(k.buckets, excluded.buckets) with ordinality u (o, n, i) order by i);
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
  set standard_conforming_strings = 'on'
as $sql$ select replace(replace(replace(value, '\', '\\'), '"', '\"'), e'\n', '\n') $sql$;
comment on function rag._label(text) is 'a label''s value as the text format wants it';

create or replace function rag._counter_totals() returns table (metric text, label text, count bigint, sum_s float, cumulated bigint[])
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- A standby cannot open unlogged tables.
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
      cross join lateral (values ('ragstone_query_cache_hits_total', c.hits),
                                 ('ragstone_query_cache_misses_total', c.misses)) v (metric, count);
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
     select format('%s %s', c.label, 100 + u.i),
            format('_bucket{stage="%s",le="%s"} %s', rag._label(c.label), coalesce(u.bound::text, '+Inf'), c.cumulated[u.i])
       from unnest(rag._metric_bounds_s() || null::float) with ordinality u (bound, i)
     union all
     values (c.label || ' 998', format('_sum{stage="%s"} %s', rag._label(c.label), c.sum_s)),
            (c.label || ' 999', format('_count{stage="%s"} %s', rag._label(c.label), c.count))) l (place, line)
   where c.metric = 'stage'
  union all
  select 'ragstone_' || m || '_total', '',
         format(' %s', coalesce(c.count, 0)
                       + coalesce((select case m when 'chunks' then sum(w.chunks) else sum(w.tokens) end from rag.workers w), 0))
    from unnest('{chunks,tokens}'::text[]) m left join counters c on c.metric = m
  union all
  select 'ragstone_jobs', '', format('{state="%s"} %s', v.state, v.jobs)
    from queue q
   cross join lateral (values ('waiting', q.waiting), ('noted', q.noted), ('running', q.running), ('retrying', q.retrying),
                              ('dead', q.dead)) v (state, jobs)
  union all
  select 'ragstone_oldest_job_age_seconds', '',
         format(' %s', coalesce(round(extract(epoch from clock_timestamp() - q.oldest), 3), 0))
    from queue q
  union all
  select 'ragstone_documents', '', format(' %s', rag._row_count('rag.documents'))
  union all
  select v.metric, '', format('{pipeline="%s",state="%s"} %s', rag._label(p.name), p.state, v.value)
    from rag.pipelines p
   cross join lateral (select to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) as relation) r
   cross join lateral (values ('ragstone_chunks', rag._row_count(r.relation)),
                              ('ragstone_index_bytes', pg_total_relation_size(r.relation))) v (metric, value)
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
   cross join lateral (values ('ragstone_searches_total', f.calls::text),
                              ('ragstone_search_seconds_total', (f.ms / 1000)::text)) v (metric, value)
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
comment on function rag.metrics() is
  'counters, gauges and histograms of this database in the text format of Prometheus: psql -XAtqc ''select rag.metrics()''. Takes'
  ' milliseconds. Counters begin at 0 after a crash of the server';
