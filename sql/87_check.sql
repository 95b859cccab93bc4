-- rag.check(): data and security, and all findings together.

create or replace function rag._check_document_root(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _root    text := rag.get('document_root');
  _problem record;
begin
  if _root is null then
    ok := not exists (select from rag.sources s where s.path_column is not null);
    detail := case when ok then 'not set; no source has file names' else 'not set: no file can be read' end;
    hint := case when not ok then 'Type: select rag.set(''document_root'', ''/folder/of/the/documents'');' end;
    return;
  end if;
  -- Judged as when it was set: a link may lead elsewhere since, and a dump brings a setting as it is.
  select * into _problem from rag._folder_problem(_root);
  if _problem.problem is not null then
    ok := false;
    detail := format('%s: %s', _root, _problem.problem);
    hint := coalesce(_problem.hint, rag._folder_hint(_root));
  else
    ok := true;
    detail := _root;
  end if;
end
$plpgsql$;

create or replace function rag._check_sources(out ok boolean, out detail text, out hint text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source   rag.sources;
  _count    integer := 0;
  _missing  bigint;
  _relation regclass;
begin
  select t.tgrelid into _relation from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal and t.tgname like 'ragstone%'
    and not exists (select from rag.sources s
                    where t.tgargs = rag._trigger_argument(s.source_id)
                      and (rag._source_of_trigger(s.source_id, t.tgrelid)).source_id is not null)
  limit 1;
  if found then
    ok := false;
    detail := format('%s has triggers of ragstone and is not attached: changes go unseen', _relation);
    hint := format('After restoring a schema, restore the data too, with --disable-triggers; or attach it:'
                   ' select rag.attach_source(%L, …);', _relation);
    return;
  end if;
  for _source in select * from rag.sources order by source_id loop
    _count := _count + 1;
    begin
      perform rag._require_columns(_source);
    exception when undefined_column or datatype_mismatch then
      ok := false;
      detail := format('%s: %s', _source.name, sqlerrm);
      hint := format('Alter the column back, or attach the table anew after: select rag.detach_source(%L);', _source.relation);
      return;
    end;
    if rag._code_of_others(_source.relation) is not null then
      ok := false;
      detail := format('%s is not read: %s', _source.name, rag._code_of_others(_source.relation));
      hint := 'Its owner could run it as ragstone''s owner. Drop what has it; or take the function over, having read it:'
              ' alter function … owner to …;';
      return;
    end if;
    select count(*) into _missing
    from rag._tree(_source.relation) r (relid)
    where not rag._has_all_triggers(_source.source_id, r.relid);
    -- Those of rag.uploads are no part of a dump: they come back with the next worker or upload.
    if _missing > 0 and not (_source.relation = 'rag.uploads'::regclass and not exists (select from rag._triggers(_source.source_id))) then
      ok := false;
      detail := format('%s: triggers are missing or disabled on %s table(s): changes go unseen', _source.name, _missing);
      hint := format('Attach it anew: select rag.detach_source(%L); then rag.attach_source(…) as before.', _source.relation);
      return;
    end if;
    if coalesce(rag._key_problem(_source), _source.problem) is not null then
      ok := false;
      detail := format('%s: %s', _source.name, coalesce(rag._key_problem(_source), _source.problem));
      hint := 'Correct the table; then have all its rows looked at: call rag.maintain();';
      return;
    end if;
  end loop;
  ok := true;
  detail := format('%s attached', _count) || coalesce(
    (select '; the last rag.maintain() found what no trigger had seen: ' || string_agg(format('%s %s', l.count, l.task), ', ')
     from rag.maintenance_log l
     where l.count > 0 and l.task in ('rows without a document queued', 'documents without a row removed', 'partitions that came or went')
       and l.finished_at >= (select max(m.started_at) from rag.maintenance_log m where m.task = 'partitions that came or went')), '');
end
$plpgsql$;

create or replace function rag._check_indexes(out ok boolean, out detail text, out hint text)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
  _index    record;
  _count    integer := 0;
  _deferred text;
begin
  ok := false;
  for _pipeline in
    select * from rag.pipelines p where to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) is not null order by p.pipeline_id
  loop
    select * into _index from rag._needless_indexes(_pipeline) limit 1;
    if found then
      detail := format('%s %s', _index.index, _index.reason);
      hint := _index.remedy;
      return;
    elsif _pipeline.state <> 'superseded' and _pipeline.index_method <> 'none' and not _pipeline.index_deferred
          and not exists (select from rag._vector_indexes(_pipeline.pipeline_id) i
                          where i.method = _pipeline.index_method and i.is_valid) then
      detail := format('pipeline %s has no %s index: every search by meaning reads all vectors', _pipeline.name, _pipeline.index_method);
      hint := format('It was dropped by hand. Type: select rag.build_index(%L);', _pipeline.name);
      return;
    end if;
    _count := _count + 1;
  end loop;
  if rag._has_abandoned_rebuild() then
    detail := format('pg_cron still runs the job "%s", and no call of rag.rebuild_index() waits for it', rag._rebuild_job_name());
    hint := format('Call rag.rebuild_index() again as before: it goes on from there. Or give up the index: select cron.unschedule(%L);',
                   rag._rebuild_job_name());
    return;
  end if;
  ok := true;
  detail := format('valid in %s partition(s)', _count);
  select string_agg(p.name, ', ' order by p.name) into _deferred from rag.pipelines p where p.index_deferred;
  if _deferred is not null then
    ok := null;
    detail := format('%s; deferred in %s: searches by meaning read all vectors', detail, _deferred);
    hint := 'Workers build it when nothing waits any more. At once: select rag.build_index(name) from rag.pipelines where index_deferred;';
  end if;
end
$plpgsql$;

create or replace function rag._check_statistics(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select count(*) filter (where s.is_stale) = 0,
         coalesce(string_agg(format('%s: %s rows changed since the last analyze', s.name, s.changed), '; ') filter (where s.is_stale),
                  'fresh'),
         'Type: ' || string_agg(format('analyze %s;', s.name), ' ') filter (where s.is_stale) || ' and see that autovacuum runs.'
  from (select format('%I.%I', t.schemaname, t.relname) as name, t.n_mod_since_analyze as changed,
               t.n_mod_since_analyze > 10000 and t.n_mod_since_analyze > t.n_live_tup / 2 as is_stale
        from pg_stat_user_tables t
        where t.schemaname = 'rag' and (t.relname like 'document_chunks%' or t.relname in ('documents', 'ingestion_queue'))) s
$sql$;

create or replace function rag._check_row_security(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A search must not show a reader what the source hides from that reader.
  select count(s.name) filter (where c.relrowsecurity) = 0 or k.relrowsecurity,
         case when count(s.name) filter (where c.relrowsecurity) = 0 then 'no source has it'
              else format('on in %s; on rag.document_chunks %s', string_agg(s.name, ', ') filter (where c.relrowsecurity),
                          case when k.relrowsecurity then 'too' else 'off: searches show what the table hides' end) end,
         case when count(s.name) filter (where c.relrowsecurity) > 0 and not k.relrowsecurity
              then 'By tenant: select rag.enable_tenant_isolation(); by the source''s own policies, in every search:'
                   ' check_source => true.' end
  from pg_class k
  left join (rag.sources s join pg_class c on c.oid = s.relation) on true
  where k.oid = 'rag.document_chunks'::regclass
  group by k.relrowsecurity
$sql$;

create or replace function rag._check_privileges(out ok boolean, out detail text, out hint text)
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with open as (
    select 'routine ' || p.oid::regprocedure as object from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    where p.pronamespace = 'rag'::regnamespace and a.grantee = 0
    union all
    select 'table ' || c.oid::regclass from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace = 'rag'::regnamespace and a.grantee = 0
  )
  select not exists (select from open) and not exists (select from rag.usage_grants g where g.missing > 0),
         coalesce((select format('everybody has privileges on %s', min(o.object)) from open o having count(*) > 0),
                  (select format('%s lacks %s privilege(s) of level %s', g.role, g.missing, g.level)
                   from rag.usage_grants g where g.missing > 0 limit 1),
                  (select format('nothing for everybody; %s role(s) granted', count(distinct g.role)) from rag.usage_grants g)),
         coalesce((select format('Type: revoke all on %s from public;', min(o.object)) from open o having count(*) > 0),
                  (select format('Type: select rag.grant_usage(%L, level => %L);', g.role, g.level)
                   from rag.usage_grants g where g.missing > 0 limit 1))
$sql$;

create or replace function rag._checks() returns table (place bigint, name text, call text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select row_number() over (), c, case when c in ('libraries', 'cpu', 'model', 'prepacked', 'extraction', 'ocr', 'memory')
                                       then format('rag._check_in_python(%L)', c) else format('rag._check_%s()', c) end
  from unnest('{postgresql,extension,package,libraries,cpu,model,prepacked,embedding,extraction,ocr,pgvector,
                pg_cron,workers,worker_processes,cron_history,maintenance,stuck_jobs,failures,
                document_root,sources,indexes,statistics,memory,row_security,privileges}'::text[]) c
$sql$;
comment on function rag._checks() is 'the checks of rag.check(), in its order';

create or replace function rag.check() returns table ("check" text, ok boolean, detail text, hint text)
  language plpgsql
  -- SECURITY DEFINER: whoever runs a server may see how it is without reading what is in it.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _check record;
begin
  for _check in select * from rag._checks() c order by c.place loop
    "check" := _check.name;
    begin
      execute 'select * from ' || _check.call into ok, detail, hint;
    exception when others then
      ok := null;
      detail := 'cannot be checked: ' || sqlerrm;
      hint := 'See to the checks above first.';
    end;
    return next;
  end loop;
end
$plpgsql$;
comment on function rag.check() is
  'whether everything is as it should be: one row a check, ok (null where it cannot be told, or is not needed here), what was found, and'
  ' what to do about it. Takes well below a second, most of it for trying out the model and the extraction; changes nothing and raises'
  ' nothing';
