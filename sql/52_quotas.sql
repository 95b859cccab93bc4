-- Quotas of tenants.
--
-- A worker asks before it reads a document and again before it embeds it, to save the work. What counts is the
-- last question, by rag._store_document(), under a lock of the tenant: other workers may have stored meanwhile.

create or replace function rag._has_quota(tenant_id bigint) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select coalesce(rag.get('max_tenant_documents', _has_quota.tenant_id), rag.get('max_tenant_bytes', _has_quota.tenant_id),
                  rag.get('max_tenant_chunks_per_day', _has_quota.tenant_id)) is not null
$sql$;
comment on function rag._has_quota(bigint) is 'whether any quota is set for a tenant, its own or that of all';

create or replace function rag._lock_quota(tenant_id bigint) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- Taken last, after the document and its job: who holds it waits for nobody. A class of its own keeps it
  -- apart from advisory locks of applications. Without a quota nobody waits.
  if _lock_quota.tenant_id is not null and rag._has_quota(_lock_quota.tenant_id) then
    perform pg_advisory_xact_lock(rag._lock_class() + 1, hashint8(_lock_quota.tenant_id));
  end if;
end
$plpgsql$;
comment on function rag._lock_quota(bigint) is
  'makes the stores of one tenant take turns until the end of the transaction, where the tenant has a quota';

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
  if not rag._has_quota(_document.tenant_id) then
    return null;
  end if;
  -- All that can be found: also documents that wait or failed, whose chunks of before are searched.
  select count(*) as documents, coalesce(sum(d.file_size), 0) as bytes into _used
    from rag.documents d
   where d.tenant_id = _document.tenant_id and (d.status = 'completed' or d.chunks > 0)
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
