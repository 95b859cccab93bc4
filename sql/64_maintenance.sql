-- The tasks of rag.maintain(), which runs once a night; each is a transaction of its own.

create or replace function rag._files_to_check(after_source integer, after_document bigint)
  returns table (source_id integer, document_id bigint, source_key text, file_path text, sha256 text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The hash is that of the file as last read, whichever version is searched: one that somebody
  -- restored is not undone. A document that waits or is dead is not looked at.
  select d.source_id, d.document_id, d.source_key, d.file_path, encode(d.sha256, 'hex')
  from rag.documents d
  join rag.sources s on s.source_id = d.source_id and s.path_column is not null
  where (d.source_id, d.document_id) > (after_source, after_document)
    and d.status = 'completed' and d.file_path is not null and d.sha256 is not null
  order by d.source_id, d.document_id
  limit 200
$sql$;
comment on function rag._files_to_check(integer, bigint) is 'the next 200 documents that lie in files, with the hash they had';

create or replace function rag._queue_outdated() returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _group record;
  _count bigint := 0;
begin
  for _group in
    select l.source_id, l.pipeline_id, array_agg(l.document_id) as document_ids
      from (select d.source_id, d.document_id, p.pipeline_id
              from rag.pipelines p
              join rag.document_versions v on v.pipeline_id = p.pipeline_id and v.state = 'ready'
              join rag.documents d on d.source_id = v.source_id and d.document_id = v.document_id
             where p.state in ('active', 'building')
               and v.fingerprint is distinct from rag._fingerprint(v.sha256, d, p)
               and not exists (select from rag.ingestion_queue q
                               where (q.source_id, q.document_id, q.pipeline_id) = (v.source_id, v.document_id, v.pipeline_id))
               -- Restored by somebody: outdated on purpose.
               and not exists (select from rag.document_versions w
                               where (w.source_id, w.document_id, w.pipeline_id) = (v.source_id, v.document_id, v.pipeline_id)
                                 and w.state = 'superseded' and w.version_id > v.version_id)
             order by d.source_id, d.document_id
             limit 10000
               for no key update of d skip locked) l
     group by l.source_id, l.pipeline_id
  loop
    _count := _count + rag._enqueue(_group.source_id, _group.document_ids, priority => -10, pipeline_id => _group.pipeline_id);
  end loop;
  return _count;
end
$plpgsql$;
comment on function rag._queue_outdated() is
  'queues documents whose chunks were made with other parameters than they would be now, up to 10,000; returns how many';

create or replace function rag._prune_history() returns bigint
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  with gone as (
    delete from rag.job_history h
    where h.finished_at < now() - rag.get('job_history_days')::integer * interval '1 day'
    returning 1
  )
  select count(*) from gone
$sql$;
comment on function rag._prune_history() is 'deletes finished jobs older than job_history_days; returns how many';

create or replace function rag._prune_version_history() returns bigint
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Versions of documents that are being deleted right now go with them.
  with gone as (
    delete from rag.document_versions v
    where v.version_id = any (array(
            select o.version_id from rag.document_versions o
             where o.state <> 'ready' and not o.restorable
               and o.finished_at < now() - rag.get('version_history_days')::integer * interval '1 day'
               -- What failed of the present generation says why a document is not searchable.
               and not (o.state = 'failed'
                        and exists (select from rag.documents d
                                    where d.source_id = o.source_id and d.document_id = o.document_id and d.generation = o.generation))
               for update skip locked))
    returning 1
  )
  select count(*) from gone
$sql$;
comment on function rag._prune_version_history() is
  'deletes failed and superseded versions older than version_history_days; returns how many';

create or replace function rag._prune_cron_history() returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pruned bigint := 0;
begin
  -- pg_cron never prunes it; only what is of our own jobs is touched.
  if to_regclass('cron.job_run_details') is not null then
    execute $sql$
      delete from cron.job_run_details d
      where d.database = current_database() and d.command like 'call rag.%'
        and d.end_time < now() - rag.get('job_history_days')::integer * interval '1 day' $sql$;
    get diagnostics _pruned = row_count;
  end if;
  return _pruned;
end
$plpgsql$;
comment on function rag._prune_cron_history() is
  'deletes what pg_cron has noted of our own jobs longer ago than job_history_days; returns how many rows';

create or replace function rag._count_problems() returns bigint
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$ select count(*) from rag.check_consistency() $sql$;
comment on function rag._count_problems() is 'number of rows of rag.check_consistency()';

create or replace function rag._log_maintenance(task text, count bigint, started_at timestamptz, error text default null) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  delete from rag.maintenance_log l where l.finished_at < now() - rag.get('job_history_days')::integer * interval '1 day';
  insert into rag.maintenance_log (task, count, started_at, finished_at, error)
  values (task, count, started_at, clock_timestamp(), error);
$sql$;
comment on function rag._log_maintenance(text, bigint, timestamptz, text) is 'notes what maintenance did, or why a task failed';
