-- Quotas of tenants.

create or replace function rag._quota_problem(job_id bigint, bytes bigint, chunks integer) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _document rag.documents;
  _used     record;
  _problem  text;
begin
  select d.* into _document
    from rag.ingestion_queue q join rag.documents d on d.source_id = q.source_id and d.document_id = q.document_id
   where q.job_id = _quota_problem.job_id;
  if _document.tenant_id is null then
    return null;
  end if;
  select count(*) as documents, coalesce(sum(d.file_size), 0) as bytes into _used
    from rag.documents d
   where d.tenant_id = _document.tenant_id and d.status = 'completed'
     and (d.source_id, d.document_id) <> (_document.source_id, _document.document_id);

  select format('%s is %s, and tenant %s would have %s', l.name, l.value, _document.tenant_id, l.would_be)
    into _problem
    from (values
      ('max_tenant_documents',      _used.documents + 1),
      ('max_tenant_bytes',          _used.bytes + _quota_problem.bytes),
      ('max_tenant_chunks_per_day', _quota_problem.chunks + (
         select coalesce(sum(v.chunks), 0)::bigint
         from rag.document_versions v
         join rag.documents d on d.source_id = v.source_id and d.document_id = v.document_id
         where v.finished_at > now() - interval '24 hours' and d.tenant_id = _document.tenant_id))) as u (name, would_be)
    cross join lateral (select u.name, rag.get(u.name, _document.tenant_id)::bigint as value, u.would_be) l
   where l.would_be > l.value
   order by l.name
   limit 1;
  return _problem;
end
$plpgsql$;
comment on function rag._quota_problem(bigint, bigint, integer) is
  'which quota of its tenant a job''s document would exceed if it came to so many bytes and chunks, in words; null where none';
