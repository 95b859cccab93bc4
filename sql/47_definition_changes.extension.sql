-- Changes of an attached table's definition, followed by event triggers, which only a superuser can make.

create or replace function rag._after_ddl() returns event_trigger
  language plpgsql
  -- SECURITY DEFINER: whoever may alter a table need not be able to write ragstone's own tables.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source  rag.sources;
  _trigger record;
begin
  -- pg_restore --disable-triggers switches all triggers of a table off and, after its data, on. Those on
  -- rag.pipelines and rag._settings must never be off, as they let their data in. Those of sources fire again
  -- in the sessions they are for.
  for _trigger in
    select t.tgname, t.tgrelid::regclass as relation, coalesce(k.fires, 'A') as fires
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid left join rag._trigger_kinds() k on k.tgname = t.tgname
    where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal
      and case when p.proname in ('_restore_pipeline', '_keep_setting') then t.tgenabled = 'D'
               else t.tgenabled <> 'D' and t.tgenabled <> k.fires end
      and t.tgrelid in (select d.objid from pg_event_trigger_ddl_commands() d where d.classid = 'pg_class'::regclass)
  loop
    perform rag._set_firing(_trigger.relation, _trigger.tgname, _trigger.fires);
  end loop;

  perform rag._require_own_code(s.relation)
  from rag.sources s
  where s.relation in (
    with recursive up (relid) as (
      select case d.classid when 'pg_class'::regclass
                            then coalesce((select i.indrelid from pg_index i where i.indexrelid = d.objid), d.objid)
                            when 'pg_rewrite'::regclass then (select r.ev_class from pg_rewrite r where r.oid = d.objid)
                            when 'pg_statistic_ext'::regclass then (select x.stxrelid from pg_statistic_ext x where x.oid = d.objid) end
      from pg_event_trigger_ddl_commands() d
      union
      select i.inhparent from pg_inherits i join up on i.inhrelid = up.relid
    )
    select u.relid from up u where u.relid is not null);

  for _source in
    select s.* from rag.sources s
    where exists (select from pg_event_trigger_ddl_commands() d
                  where d.classid = 'pg_class'::regclass
                    and (s.relation in (select a from rag._ancestors(d.objid) a)
                         -- What inherits from it no more has its triggers still.
                         or exists (select from rag._triggers(s.source_id) t where t.tgrelid = d.objid)))
  loop
    _source := rag._follow_columns(_source);
    -- Workers read these columns with the rights of ragstone's owner: a type of the table's owner,
    -- with a cast of their own, would be run with those rights.
    perform rag._require_columns(_source);
    perform rag._follow_members(_source);
  end loop;
end
$plpgsql$;
comment on function rag._after_ddl() is
  'follows renamed columns of attached tables; takes in the rows of new partitions, and out those of former ones; keeps triggers firing in'
  ' the sessions they are for, and code of others out of what is read';

create or replace function rag._after_drop() returns event_trigger
  language plpgsql
  -- SECURITY DEFINER: as for rag._after_ddl().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _dropped record;
  _source  rag.sources;
begin
  for _dropped in
    select d.objid, d.objsubid, d.address_names from pg_event_trigger_dropped_objects() d
    where d.classid = 'pg_class'::regclass
  loop
    select * into _source from rag.sources s where s.relation::oid = _dropped.objid;
    if not found then
      continue;
    elsif _dropped.objsubid = 0 then
      perform rag._forget_source(_source.source_id);
    elsif _dropped.address_names[3] = any (rag._watched_columns(_source) || _source.key_column) then
      raise exception 'column "%" of table % is watched by ragstone', _dropped.address_names[3], _source.relation
        using errcode = 'dependent_objects_still_exist',
              hint    = format('First detach the table: select rag.detach_source(%L);', _source.relation);
    end if;
  end loop;

  -- A partition, or a table that inherited: which rows it had nobody knows any more, nor whose triggers it had.
  if exists (select from pg_event_trigger_dropped_objects() d
             where d.object_type = 'trigger' and d.address_names[3] = 'ragstone_truncate') then
    perform rag._remove_documents_without_row(s)
    from rag.sources s join pg_class c on c.oid = s.relation
    where c.relkind = 'p' or c.relhassubclass;
  end if;
end
$plpgsql$;
comment on function rag._after_drop() is
  'takes the documents of a dropped table or partition out of search, and keeps watched columns from being dropped';

do $do$
begin
  -- Anew at each update: what it listens to is part of it.
  drop event trigger if exists ragstone_after_ddl;
  create event trigger ragstone_after_ddl on ddl_command_end
    when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'CREATE INDEX', 'CREATE STATISTICS', 'CREATE RULE')
    execute function rag._after_ddl();
  if not exists (select from pg_event_trigger where evtname = 'ragstone_after_drop') then
    create event trigger ragstone_after_drop on sql_drop
      when tag in ('ALTER TABLE', 'DROP TABLE', 'DROP SCHEMA', 'DROP OWNED') execute function rag._after_drop();
  end if;
end
$do$;
