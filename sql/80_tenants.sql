-- Tenants: row security keeps them apart. It does not apply to workers and triggers, which run as the
-- extension's owner.

create or replace function rag._tied_tenants(role_names name[]) returns bigint[]
  language sql stable parallel safe
  -- SECURITY DEFINER: callers cannot read the table of tenants' roles.
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$ select array_agg(distinct r.tenant_id) from rag._tenant_roles r where r.role_name = any (role_names) $sql$;
comment on function rag._tied_tenants(name[]) is 'the tenants that these roles are tied to; null if they are tied to none';

create or replace function rag.current_tenant() returns bigint
  language plpgsql stable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  -- For a role that is tied to a tenant the setting is ignored, because any role can change it. Both
  -- roles are tested: a session can take another role, and another session, such as a superuser's, can
  -- run a function or an index of the tenant.
  _tied    constant bigint[] := rag._tied_tenants(array[session_user, current_user]);
  _setting constant text := nullif(current_setting('ragstone.tenant_id', true), '');
  _number  constant numeric := substring(_setting from '^[[:space:]]*[-+]?[0-9]{1,19}[[:space:]]*$');
begin
  if _tied is not null then
    return case when cardinality(_tied) = 1 then _tied[1] end;
  elsif _setting is not null and (_number between -9223372036854775808 and 9223372036854775807) is not true then
    -- There is no exception block, because parallel workers cannot have one.
    raise exception 'ragstone.tenant_id is not a tenant: "%"', left(_setting, 40)
      using errcode = 'invalid_parameter_value',
            hint    = 'A tenant is an integer: set ragstone.tenant_id = 42; for no tenant: reset ragstone.tenant_id;';
  end if;
  return _number;
end
$plpgsql$;
comment on function rag.current_tenant() is
  'the tenant of this session: the one that its login role or its current role is tied to by rag.set_tenant_role(), or else the one that'
  ' it has set by: set ragstone.tenant_id = 42; null, which sees nothing, if there is none, or if the two roles are tied to different'
  ' tenants. Raises 22023 for a setting that is not an integer';

create or replace function rag.set_tenant_role(role_name name, tenant_id bigint) returns void
  language plpgsql
  -- SECURITY DEFINER: callers cannot write the table of tenants' roles.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if not exists (select from pg_roles r where r.rolname = set_tenant_role.role_name) then
    raise exception 'there is no role "%"', coalesce(set_tenant_role.role_name, 'null')
      using errcode = 'undefined_object',
            hint    = format('Create it first: create role %I login;', coalesce(set_tenant_role.role_name, 'tenant_42'));
  end if;
  delete from rag._tenant_roles r where r.role_name = set_tenant_role.role_name;
  insert into rag._tenant_roles (role_name, tenant_id)
  select set_tenant_role.role_name, set_tenant_role.tenant_id where set_tenant_role.tenant_id is not null;
end
$plpgsql$;
comment on function rag.set_tenant_role(name, bigint) is
  'ties sessions that log in as a role, or act as it, to one tenant, whatever they set; null unties them. For tenants who write SQL of'
  ' their own. Raises 42704 for an unknown role';

create or replace function rag._isolated_relations() returns table (relation regclass, condition text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A partition that is queried by its own name needs its own policy.
  select c.oid::regclass, 'tenant_id = (select rag.current_tenant())'
  from pg_class c
  where c.oid in ('rag.documents'::regclass, 'rag.document_chunks'::regclass, 'rag.uploads'::regclass)
     or c.oid in (select i.inhrelid from pg_inherits i where i.inhparent = 'rag.document_chunks'::regclass)
  union all
  select r.name,
         format('exists (select from rag.documents d where d.source_id = %s.source_id and d.document_id = %1$s.document_id)', r.name)
  from unnest('{rag.document_versions,rag.ingestion_queue,rag.job_history}'::regclass[]) r (name)
  union all
  select r.name, 'false' from unnest('{rag._changes}'::regclass[]) r (name)
$sql$;
comment on function rag._isolated_relations() is
  'the tables that tenant isolation covers, and the condition on the rows that a tenant sees';

create or replace function rag._isolate(relation regclass, condition text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  execute format('drop policy if exists ragstone_tenant on %s', relation);
  execute format('create policy ragstone_tenant on %s using (%s)', relation, condition);
  execute format('alter table %s enable row level security', relation);
end
$plpgsql$;

create or replace function rag.enable_tenant_isolation() returns bigint
  language sql
  -- SECURITY DEFINER: only the owner of the tables can create policies.
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$ select count(*) from (select rag._isolate(i.relation, i.condition) from rag._isolated_relations() i offset 0) s $sql$;
comment on function rag.enable_tenant_isolation() is
  'from now on every role except the extension''s owner sees only the documents, chunks, versions, jobs and log of its session''s tenant,'
  ' see rag.current_tenant(). Only the owner sees rows without a tenant. Returns the number of tables; pipelines created later are covered'
  ' too';

create or replace function rag.disable_tenant_isolation() returns integer
  language plpgsql
  -- SECURITY DEFINER: as for rag.enable_tenant_isolation().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _isolated record;
  _relations integer := 0;
begin
  for _isolated in select * from rag._isolated_relations() loop
    execute format('drop policy if exists ragstone_tenant on %s', _isolated.relation);
    execute format('alter table %s disable row level security', _isolated.relation);
    _relations := _relations + 1;
  end loop;
  return _relations;
end
$plpgsql$;
comment on function rag.disable_tenant_isolation() is 'undoes rag.enable_tenant_isolation(), and returns the number of tables';
