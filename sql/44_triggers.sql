-- Triggers: how changes of an attached table's rows are noticed.
--
-- The trigger functions are SECURITY DEFINER: whoever may change the user's table needs no privilege on
-- ragstone's own tables. Their only input is the source's id, which the trigger's definition fixes.

create or replace function rag._trigger_kinds() returns table (tgname name, fires "char", event text, level text, function name, referencing text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    ('ragstone_insert'::name,     'O'::"char", 'after insert',    'statement', '_after_insert'::name, 'referencing new table as new_rows'),
    ('ragstone_update',            'O',         'after update',    'statement', '_after_update',       'referencing old table as old_rows new table as new_rows'),
    ('ragstone_delete',            'O',         'after delete',    'statement', '_after_delete',       'referencing old table as old_rows'),
    -- Before: afterwards nobody knows which rows a partition had.
    ('ragstone_truncate',          'A',         'before truncate', 'statement', '_before_truncate',    ''),
    -- Rows that come by replication are rows too, and logical replication fires no triggers of
    -- statements: in such sessions, and in no other, each row fires one of its own.
    ('ragstone_replicated_insert', 'R',         'after insert',    'row',       '_after_insert',       ''),
    ('ragstone_replicated_update', 'R',         'after update',    'row',       '_after_update',       ''),
    ('ragstone_replicated_delete', 'R',         'after delete',    'row',       '_after_delete',       '')
$sql$;
comment on function rag._trigger_kinds() is
  'the triggers of an attached table; fires as in pg_trigger.tgenabled: O in ordinary sessions, R in those that replicate, A in both';

create or replace function rag._trigger_argument(source_id integer) returns bytea
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select convert_to(source_id::text, 'UTF8') || decode('00', 'hex') $sql$;
comment on function rag._trigger_argument(integer) is 'what pg_trigger.tgargs holds of a source''s triggers';

create or replace function rag._triggers(source_id integer) returns setof pg_trigger
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select t.* from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal
    -- The server itself gives those of rows to the partitions.
    and t.tgparentid = 0
    and t.tgargs = rag._trigger_argument(source_id)
$sql$;
comment on function rag._triggers(integer) is 'the triggers of a source, on its table and that table''s partitions';

create or replace function rag._source_of_trigger(source_id integer, relation regclass) returns setof rag.sources
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The number alone is not enough: where only the schema of a dump was restored, numbers begin anew.
  select s.* from rag.sources s
  where s.source_id = _source_of_trigger.source_id
    and (s.relation = _source_of_trigger.relation
         or s.relation in (select a from pg_partition_ancestors(_source_of_trigger.relation) a))
$sql$;
comment on function rag._source_of_trigger(integer, regclass) is
  'the source that a trigger of this table was made for, if it is still attached';

create or replace function rag._make_triggers(source_id integer, relation regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _trigger record;
begin
  for _trigger in
    select k.* from rag._trigger_kinds() k
    where k.level = 'statement'
       or exists (select from rag.sources s where s.source_id = _make_triggers.source_id and s.relation = _make_triggers.relation)
  loop
    -- Or replace: a table that was restored without the data of rag.sources has them already.
    execute format('create or replace trigger %I %s on %s %s for each %s execute function rag.%I(%L)',
                   _trigger.tgname, _trigger.event, relation, _trigger.referencing, _trigger.level, _trigger.function, source_id);
    perform rag._set_firing(relation, _trigger.tgname, _trigger.fires);
  end loop;
end
$plpgsql$;
comment on function rag._make_triggers(integer, regclass) is
  'makes the triggers of a source on its table, or those of statements on one of that table''s partitions';

create or replace function rag._set_firing(relation regclass, trigger_name name, fires "char") returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  execute format('alter table %s enable %s trigger %I', relation, case fires when 'A' then 'always' when 'R' then 'replica' else '' end, trigger_name);
end
$plpgsql$;
comment on function rag._set_firing(regclass, name, "char") is 'sets in which sessions a trigger fires, as in pg_trigger.tgenabled';

create or replace function rag._has_all_triggers(source_id integer, relation regclass) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select not exists (
    select from rag._trigger_kinds() k
    where (k.level = 'statement' or exists (select from rag.sources s where s.source_id = _has_all_triggers.source_id and s.relation = _has_all_triggers.relation))
      and not exists (select from rag._triggers(_has_all_triggers.source_id) t
                      where t.tgrelid = _has_all_triggers.relation and t.tgname = k.tgname and t.tgenabled = k.fires))
    -- Nor may those that a partition has from its table fire elsewhere.
    and not exists (
    select from pg_trigger t join rag._trigger_kinds() k on k.tgname = t.tgname
    where t.tgrelid = _has_all_triggers.relation and t.tgparentid <> 0 and t.tgenabled <> k.fires)
$sql$;
comment on function rag._has_all_triggers(integer, regclass) is
  'whether a source''s table, or a partition of it, has all its triggers, each firing where it shall';

create or replace function rag._new_rows(level text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case level when 'ROW' then '(select ($2).*)' else 'new_rows' end $sql$;
comment on function rag._new_rows(text) is
  'what a trigger reads changed rows from: its transition table, or the one row, which is passed as parameter 2';

create or replace function rag._old_rows(level text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case level when 'ROW' then '(select ($1).*)' else 'old_rows' end $sql$;
comment on function rag._old_rows(text) is
  'what a trigger reads former rows from: its transition table, or the one row, which is passed as parameter 1';

create or replace function rag._warn_unattached(relation regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- So it is while a dump is restored schema first and data later, and stays so where the data never
  -- come. The table's rows must be writable either way.
  raise warning 'table % has triggers of ragstone and is not attached: its changes are not followed', _warn_unattached.relation
    using hint = format('While a dump is being restored this is as it should be. Otherwise attach it: select rag.attach_source(%L, …);', _warn_unattached.relation);
end
$plpgsql$;
comment on function rag._warn_unattached(regclass) is 'warns that a table has triggers of a source that is not there';

create or replace function rag._after_insert() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  select * into _source from rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
  if not found then
    perform rag._warn_unattached(tg_relid);
    return null;
  end if;
  execute format('select array_agg(r.%I::text) from %s r', _source.key_column, rag._new_rows(tg_level)) into _keys using old, new;
  if _keys is not null then
    perform rag._record_changes(_source.source_id, _keys, 0::smallint);
  end if;
  return null;
end
$plpgsql$;

create or replace function rag._after_update() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source   rag.sources;
  _new_rows text := rag._new_rows(tg_level);
  _old_rows text := rag._old_rows(tg_level);
  _changed  text[];
  _gone     text[];
begin
  select * into _source from rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
  if not found then
    perform rag._warn_unattached(tg_relid);
    return null;
  end if;
  execute format(
    'select array_agg(n.%1$I::text) from %3$s n left join %4$s o on o.%1$I = n.%1$I where o.%1$I is null or %2$s',
    _source.key_column,
    (select string_agg(format(case when rag._column_type(_source.relation, c) = 'json'::regtype
                                   then 'o.%1$I::text is distinct from n.%1$I::text'
                                   -- Nor may comparing find an operator by way of the owner's casts.
                                   when not rag._has_trusted_type(_source.relation, c)
                                   then 'format(''%%s'', o.%1$I) is distinct from format(''%%s'', n.%1$I)'
                                   else 'o.%1$I is distinct from n.%1$I' end, c), ' or ')
     from unnest(rag._watched_columns(_source)) c), _new_rows, _old_rows)
  into _changed using old, new;
  execute format(
    'select array_agg(o.%1$I::text) from %3$s o where not exists (select from %2$s n where n.%1$I = o.%1$I)',
    _source.key_column, _new_rows, _old_rows)
  into _gone using old, new;

  if _source.tenant_column is not null then
    -- At once and not by a worker: what leaves a tenant must not be found by it any more.
    execute format($sql$
      with moved as (
        update rag.documents d set tenant_id = n.%2$I
        from %3$s n join %4$s o on o.%1$I = n.%1$I
        where d.source_id = $3 and d.source_key = n.%1$I::text and o.%2$I is distinct from n.%2$I
        returning d.document_id, d.tenant_id
      )
      update rag.document_chunks c set tenant_id = m.tenant_id
      from moved m where c.source_id = $3 and c.document_id = m.document_id
      $sql$, _source.key_column, _source.tenant_column, _new_rows, _old_rows)
    using old, new, _source.source_id;
  end if;
  if _gone is not null then
    perform rag._delete_documents(_source.source_id, _gone);
  end if;
  if _changed is not null then
    perform rag._record_changes(_source.source_id, _changed, 0::smallint);
  end if;
  return null;
end
$plpgsql$;

create or replace function rag._after_delete() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  select * into _source from rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
  if not found then
    perform rag._warn_unattached(tg_relid);
    return null;
  end if;
  execute format('select array_agg(r.%I::text) from %s r', _source.key_column, rag._old_rows(tg_level)) into _keys using old, new;
  if _keys is not null then
    perform rag._delete_documents(_source.source_id, _keys);
  end if;
  return null;
end
$plpgsql$;

create or replace function rag._before_truncate() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  select * into _source from rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
  if not found then
    perform rag._warn_unattached(tg_relid);
    return null;
  end if;
  if tg_relid = _source.relation then
    perform rag._delete_documents(_source.source_id, null);
  else
    perform rag._require_own_code(_source.relation);
    execute format('select array_agg(s.%I::text) from %s s', _source.key_column, tg_relid::regclass) into _keys;
    perform rag._delete_documents(_source.source_id, coalesce(_keys, '{}'));
  end if;
  return null;
end
$plpgsql$;
