-- Consistency: what must hold at any moment, as a query that can be run at any time.

create or replace function rag.check_consistency()
  returns table (problem text, source text, document_id bigint, pipeline text, detail text)
  language plpgsql volatile
  -- SECURITY DEFINER: whoever runs a server may see that it contradicts itself without reading what is in it.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
begin
  -- One statement, so one snapshot: a worker may store something between two statements.
  return query
  with live as (
    select p.pipeline_id, p.name, p.state from rag.pipelines p where p.state in ('active', 'building')
  ), stored as (
    select c.pipeline_id, c.source_id, c.document_id, count(*) as chunks, min(c.chunk_index) as first, max(c.chunk_index) as last,
           count(distinct c.chunk_index) as places, count(distinct (c.tenant_id, c.tags)) as labels, min(c.tenant_id) as tenant_id
    from rag.document_chunks c group by 1, 2, 3
  ), ready as (
    select v.* from rag.document_versions v where v.state = 'ready'
  ), found as (
    select 'chunks of no document' as problem, s.source_id, s.document_id, s.pipeline_id, format('%s chunks', s.chunks) as detail
      from stored s
     where not exists (select from rag.documents d where d.source_id = s.source_id and d.document_id = s.document_id)
    union all
    select 'chunks of no version', s.source_id, s.document_id, s.pipeline_id, format('%s chunks', s.chunks)
      from stored s
     where not exists (select from ready r where (r.source_id, r.document_id, r.pipeline_id) = (s.source_id, s.document_id, s.pipeline_id))
    union all
    select 'chunks not those of the version', r.source_id, r.document_id, r.pipeline_id,
           format('version %s has %s chunks, stored are %s, from %s to %s', r.version_id, r.chunks, coalesce(s.chunks, 0), s.first, s.last)
      from ready r
      left join stored s on (r.source_id, r.document_id, r.pipeline_id) = (s.source_id, s.document_id, s.pipeline_id)
     where coalesce(s.chunks, 0) <> r.chunks or s.first <> 0 or s.last <> s.chunks - 1 or s.places <> s.chunks
    union all
    select 'chunks with other labels than the document', s.source_id, s.document_id, s.pipeline_id,
           format('tenant %s, the document''s %s', s.tenant_id, d.tenant_id)
      from stored s
      join rag.documents d on d.source_id = s.source_id and d.document_id = s.document_id
     where s.labels > 1 or s.tenant_id is distinct from d.tenant_id
    union all
    select 'versions of no document', v.source_id, v.document_id, v.pipeline_id, format('%s versions', count(*))
      from rag.document_versions v
     where not exists (select from rag.documents d where d.source_id = v.source_id and d.document_id = v.document_id)
     group by v.source_id, v.document_id, v.pipeline_id
    union all
    select 'job of no document', q.source_id, q.document_id, q.pipeline_id, format('job %s is %s', q.job_id, q.status)
      from rag.ingestion_queue q
     where not exists (select from rag.documents d where d.source_id = q.source_id and d.document_id = q.document_id)
    union all
    select 'neither searchable as it is, nor queued, nor dead', d.source_id, d.document_id, p.pipeline_id,
           format('its status is %s', d.status)
      from rag.documents d
     cross join live p
     where not exists (select from ready r where (r.source_id, r.document_id, r.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
                                             and r.generation = d.generation)
       and not exists (select from rag.ingestion_queue q
                       where (q.source_id, q.document_id, q.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id))
       and not exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id)
       -- Unless its dead letter was discarded: then it is given up until the row changes.
       and not (case when p.state = 'active' then d.status in ('failed', 'rejected')
                     else exists (select from rag.document_versions v
                                  where (v.source_id, v.document_id, v.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
                                    and v.state = 'failed' and v.generation = d.generation) end)
    union all
    select 'status does not say how it is', s.source_id, s.document_id, p.pipeline_id,
           format('it is %s, and should be %s; its job is %s', s.written, s.status, coalesce(s.job, 'done'))
      from rag._document_states s
      join live p on p.state = 'active'
     where s.written <> s.status
    union all
    select 'kept chunks of no version', null, null, null, format('version %s, %s chunks', r.version_id, count(*))
      from rag._retained_chunks r
     where not exists (select from rag.document_versions v where v.version_id = r.version_id and v.restorable)
     group by r.version_id
    union all
    select 'chunks not counted for text search', null, null, p.pipeline_id,
           format('of configuration %s counted %s, stored %s', p.text_search_config, p.counted, p.stored)
      from (select t.pipeline_id, t.text_search_config, sum(t.counted) as counted, sum(t.stored) as stored
              from (select l.pipeline_id, l.text_search_config, l.chunks as counted, 0 as stored from rag._lexemes l where l.lexeme = ''
                    union all
                    select c.pipeline_id, c.text_search_config, c.sign, 0 from rag._lexeme_changes c
                    union all
                    select c.pipeline_id, c.text_search_config, 0, 1 from rag.document_chunks c) t
             group by t.pipeline_id, t.text_search_config) p
     where p.counted <> p.stored
  )
  select f.problem, s.name, f.document_id, p.name, f.detail
  from found f
  left join rag.sources s on s.source_id = f.source_id
  left join rag.pipelines p on p.pipeline_id = f.pipeline_id
  order by 1, 2, 3;

  for _source in select * from rag.sources order by source_id loop
    begin
      -- Code that the table's owner put on it must not run with the rights of this function.
      perform rag._require_own_code(_source.relation);
      return query execute format($sql$
        with keys as (select s.%1$I::text as key from %2$s s)
        select case when k.key is null then 'document of no row' else 'row of no document' end, $2, d.document_id, null::text,
               format('key %%s', coalesce(k.key, d.source_key))
          from keys k
          full join (select * from rag.documents d where d.source_id = $1) d on d.source_key = k.key
         where (k.key is null or d.document_id is null)
           and not exists (select from rag._changes c where c.source_id = $1 and k.key = any (c.keys))
        $sql$, _source.key_column, _source.relation)
      using _source.source_id, _source.name;
    exception when others then
      -- A table that cannot be read is reported, and the others are checked.
      return query select 'table that cannot be read', _source.name, null::bigint, null::text, sqlerrm;
    end;
  end loop;
end
$plpgsql$;
comment on function rag.check_consistency() is
  'everything that contradicts itself: chunks, versions, jobs and documents that do not belong together, rows without a document,'
  ' documents without a row, and tables that cannot be read; no rows is how it should be. Reads all of it,'
  ' so it takes a while with many documents, and changes nothing';

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
comment on function rag.cleanup_orphaned_chunks() is
  'removes chunks whose document is gone and returns how many there were; deletes take chunks along, so anything but 0 is worth asking why';
