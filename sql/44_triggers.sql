-- Triggers: how changes of an attached table's rows are noticed.
--
-- The trigger functions are SECURITY DEFINER: whoever may change the user's table needs no privilege on
-- ragstone's own tables. Their only input is the source's id, which the trigger's definition fixes.

create or replace function rag._trigger_kinds()
  returns table (tgname name, fires "char", event text, level text, function name, referencing text)
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    ('ragstone_insert'::name,      'O'::"char", 'after insert',    'statement', '_after_insert'::name,
     'referencing new table as new_rows'),
    ('ragstone_update',            'O',         'after update',    'statement', '_after_update',
     'referencing old table as old_rows new table as new_rows'),
    ('ragstone_delete',            'O',         'after delete',    'statement', '_after_delete',
     'referencing old table as old_rows'),
    -- Before: afterwards nobody knows which rows a partition had.
    ('ragstone_truncate',          'A',         'before truncate', 'statement', '_before_truncate', ''),
    -- Logical replication fires no triggers of statements: in such sessions, and in no others, each row fires one.
    ('ragstone_replicated_insert', 'R',         'after insert',    'row',       '_after_insert',    ''),
    ('ragstone_replicated_update', 'R',         'after update',    'row',       '_after_update',    ''),
    ('ragstone_replicated_delete', 'R',         'after delete',    'row',       '_after_delete',    '')
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

create or replace function rag._source_of_trigger(source_id integer, relation regclass) returns rag.sources
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
begin
  -- The number alone is not enough: where only the schema of a dump was restored, numbers begin anew.
  select * into _source from rag.sources s where s.source_id = _source_of_trigger.source_id;
  if _source.relation = _source_of_trigger.relation then
    return _source;
  elsif _source.relation in (select a.relid from rag._ancestors(_source_of_trigger.relation) a (relid)) then
    return _source;
  end if;
  return null;
end
$plpgsql$;
comment on function rag._source_of_trigger(integer, regclass) is
  'the source that a trigger of this table was made for, null where it is attached no more';

create or replace function rag._has_triggers_of_rows(source_id integer, relation regclass) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The server itself gives those of a partitioned table to its partitions.
  select exists (select from rag.sources s
                 where s.source_id = _has_triggers_of_rows.source_id and s.relation = _has_triggers_of_rows.relation)
         or not exists (select from pg_class c where c.oid = _has_triggers_of_rows.relation and c.relispartition)
$sql$;
comment on function rag._has_triggers_of_rows(integer, regclass) is 'whether a table of a source has triggers of rows that are its own';

create or replace function rag._make_triggers(source_id integer, relation regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _trigger record;
begin
  for _trigger in
    select k.* from rag._trigger_kinds() k
    where k.level = 'statement' or rag._has_triggers_of_rows(_make_triggers.source_id, _make_triggers.relation)
  loop
    -- Or replace: a table that was restored without the data of rag.sources has them already.
    execute format('create or replace trigger %I %s on %s %s for each %s execute function rag.%I(%L)',
                   _trigger.tgname, _trigger.event, relation, _trigger.referencing, _trigger.level, _trigger.function, source_id);
    perform rag._set_firing(relation, _trigger.tgname, _trigger.fires);
  end loop;
end
$plpgsql$;
comment on function rag._make_triggers(integer, regclass) is
  'makes the triggers of a source on its table, or on another one that is read with it';

create or replace function rag._drop_triggers(source_id integer, relation regclass default null) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _trigger record;
begin
  for _trigger in
    select t.tgname, t.tgrelid::regclass as relation from rag._triggers(_drop_triggers.source_id) t
    where t.tgrelid = _drop_triggers.relation or _drop_triggers.relation is null
  loop
    execute format('drop trigger if exists %I on %s', _trigger.tgname, _trigger.relation);
  end loop;
end
$plpgsql$;
comment on function rag._drop_triggers(integer, regclass) is 'takes the triggers of a source off one table, or off all';

create or replace function rag._set_firing(relation regclass, trigger_name name, fires "char") returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  execute format('alter table %s enable %s trigger %I', relation,
                 case fires when 'A' then 'always' when 'R' then 'replica' else '' end, trigger_name);
end
$plpgsql$;
comment on function rag._set_firing(regclass, name, "char") is 'sets in which sessions a trigger fires, as in pg_trigger.tgenabled';

create or replace function rag._has_all_triggers(source_id integer, relation regclass) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select not exists (
    select from rag._trigger_kinds() k
    where (k.level = 'statement' or rag._has_triggers_of_rows(_has_all_triggers.source_id, _has_all_triggers.relation))
      and not exists (select from rag._triggers(_has_all_triggers.source_id) t
                      where t.tgrelid = _has_all_triggers.relation and t.tgname = k.tgname and t.tgenabled = k.fires))
    -- Those that a partition has from its table must fire in the same sessions.
    and not exists (
    select from pg_trigger t join rag._trigger_kinds() k on k.tgname = t.tgname
    where t.tgrelid = _has_all_triggers.relation and t.tgparentid <> 0 and t.tgenabled <> k.fires)
$sql$;
comment on function rag._has_all_triggers(integer, regclass) is
  'whether a table of a source has all its triggers, each firing in the sessions it is for';

create or replace function rag._changed_rows(level text, which text) returns text
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return case when level = 'STATEMENT' then which || '_rows' when which = 'old' then '(select ($1).*)' else '(select ($2).*)' end;
end
$plpgsql$;
comment on function rag._changed_rows(text, text) is
  'what a trigger reads old or new rows from: its transition table, or the one row, which is passed as parameter 1 or 2';

create or replace function rag._warn_unattached(relation regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- So it is while a dump is restored schema first and data later, and stays so where the data never
  -- come. The table's rows must be writable either way.
  raise warning 'table % has triggers of ragstone and is not attached: its changes are not followed', _warn_unattached.relation
    using hint = format('While a dump is being restored this is as it should be. Otherwise attach it: select rag.attach_source(%L, …);',
                        _warn_unattached.relation);
end
$plpgsql$;
comment on function rag._warn_unattached(regclass) is 'warns that a table has triggers of a source that is not there';

create or replace function rag._note_missed(source rag.sources, relation regclass, keys text[], code text, message text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  raise warning 'ragstone could not follow a change of table %', _note_missed.relation
    using errcode = '01000',
          detail  = format('%s: %s', code, message),
          hint    = 'The rows are as they should be. See: select * from rag.check(); rag.maintain() looks at all rows of the table.';
  -- Where the notes cannot be written either, nobody waits for them a second time.
  if source.source_id is not null then
    begin
      lock table rag._changes in row exclusive mode nowait;
      perform rag._record_changes(source.source_id, _note_missed.keys, 0::smallint);
    exception
      when serialization_failure then
        raise;
      when others then
        null;
    end;
  end if;
end
$plpgsql$;
comment on function rag._note_missed(rag.sources, regclass, text[], text, text) is
  'warns that a change was not followed, and notes it for a worker: by keys where these are known, else empty';

create or replace function rag._remove_keys(source rag.sources, keys text[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform rag._delete_documents(source.source_id, _remove_keys.keys);
  if _remove_keys.keys is not null and rag._keys_may_repeat(source) then
    -- Another row may have the key: a worker looks.
    perform rag._record_changes(source.source_id, _remove_keys.keys, 0::smallint);
  end if;
exception
  when serialization_failure then
    -- The application's to repeat, like any of its own.
    raise;
  when others then
    -- Not at once, then: a worker removes documents without a row.
    perform rag._note_missed(source, source.relation, coalesce(_remove_keys.keys, '{}'), sqlstate, sqlerrm);
end
$plpgsql$;
comment on function rag._remove_keys(rag.sources, text[]) is
  'takes documents of deleted rows (keys null: all) out of search, or leaves that to a worker where it fails; the statement never fails'
  ' because of it';

-- A statement of the application never fails because of what only ragstone needs. So each trigger reads within a block that catches
-- errors. Nothing is written in it: its subtransaction gets no number of its own, of which a transaction had better not have many.
-- It ends with the lock on rag._changes, so that adding to it has nothing to wait for. A cancel is not caught, nor is a conflict of
-- isolation levels, which the application has to repeat.

create or replace function rag._after_insert() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '2s'
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  begin
    _source := rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
    if _source.source_id is null then
      perform rag._warn_unattached(tg_relid);
      return null;
    end if;
    execute format('select array_agg(%s) from %s r where r.%I is not null',
                   rag._key_text(_source.key_column, 'r'), rag._changed_rows(tg_level, 'new'), _source.key_column)
    into _keys using old, new;
    if _keys is null then
      return null;
    end if;
    lock table rag._changes in row exclusive mode;
  exception
    when serialization_failure then
      raise;
    when others then
      perform rag._note_missed(_source, tg_relid, '{}', sqlstate, sqlerrm);
      return null;
  end;
  if _source.relation = 'rag.uploads'::regclass then
    -- rag.add_document() returns the job.
    perform rag._expand_keys(_source.source_id, _keys, 0::smallint);
  else
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
  set lock_timeout = '2s'
as $plpgsql$
declare
  _source   rag.sources;
  _new_rows constant text := rag._changed_rows(tg_level, 'new');
  _old_rows constant text := rag._changed_rows(tg_level, 'old');
  _columns  name[];
  _changed  text[];
  _gone     text[];
  _moved    boolean;
begin
  begin
    _source := rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
    if _source.source_id is null then
      perform rag._warn_unattached(tg_relid);
      return null;
    end if;
    _columns := rag._watched_columns(_source);
    -- Compared as they are stored: operators of a type can take different values for equal, and can be anybody's.
    execute format(
      'select array_agg(%1$s) filter (where n.%3$I is not null and (o.%3$I is null or record_image_ne(row(%4$s), row(%5$s)))),'
      ' array_agg(%2$s) filter (where n.%3$I is null and o.%3$I is not null), %6$s'
      ' from %7$s n full join %8$s o on %2$s = %1$s',
      rag._key_text(_source.key_column, 'n'), rag._key_text(_source.key_column, 'o'), _source.key_column,
      (select string_agg(format('n.%I', c), ', ') from unnest(_columns) c),
      (select string_agg(format('o.%I', c), ', ') from unnest(_columns) c),
      case when _source.tenant_column is null then 'false'
           else format('bool_or(o.%1$I is distinct from n.%1$I)', _source.tenant_column) end,
      _new_rows, _old_rows)
    into _changed, _gone, _moved using old, new;
    if _changed is null and _gone is null then
      return null;
    end if;
    lock table rag._changes in row exclusive mode;
  exception
    when serialization_failure then
      raise;
    when others then
      perform rag._note_missed(_source, tg_relid, '{}', sqlstate, sqlerrm);
      return null;
  end;
  if _moved then
    begin
      -- At once and not by a worker: what leaves a tenant must not be found by it any more.
      execute format($sql$
        with moved as (
          update rag.documents d set tenant_id = n.%2$I
          from %3$s n join %4$s o on o.%1$I = n.%1$I
          where d.source_id = $3 and d.source_key = %5$s and o.%2$I is distinct from n.%2$I
          returning d.document_id, d.tenant_id
        )
        update rag.document_chunks c set tenant_id = m.tenant_id
        from moved m where c.source_id = $3 and c.document_id = m.document_id
        $sql$, _source.key_column, _source.tenant_column, _new_rows, _old_rows, rag._key_text(_source.key_column, 'n'))
      using old, new, _source.source_id;
    exception
      when serialization_failure then
        raise;
      when others then
        perform rag._note_missed(_source, tg_relid, '{}', sqlstate, sqlerrm);
    end;
  end if;
  if _gone is not null then
    perform rag._remove_keys(_source, _gone);
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
  set lock_timeout = '10s'
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  begin
    _source := rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
    if _source.source_id is null then
      perform rag._warn_unattached(tg_relid);
      return null;
    end if;
    execute format('select array_agg(%s) from %s r where r.%I is not null',
                   rag._key_text(_source.key_column, 'r'), rag._changed_rows(tg_level, 'old'), _source.key_column)
    into _keys using old, new;
  exception
    when serialization_failure then
      raise;
    when others then
      perform rag._note_missed(_source, tg_relid, '{}', sqlstate, sqlerrm);
      return null;
  end;
  if _keys is not null then
    perform rag._remove_keys(_source, _keys);
  end if;
  return null;
end
$plpgsql$;

create or replace function rag._before_truncate() returns trigger
  language plpgsql
  -- SECURITY DEFINER: see the top of this file.
  security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '10s'
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  begin
    _source := rag._source_of_trigger(tg_argv[0]::integer, tg_relid);
    if _source.source_id is null then
      perform rag._warn_unattached(tg_relid);
      return null;
    end if;
    -- All of a table that others inherit from is emptied by their own triggers: it may be truncated alone.
    if tg_relid <> _source.relation
       or exists (select from pg_class c where c.oid = tg_relid and c.relhassubclass and c.relkind = 'r') then
      perform rag._require_own_code(_source.relation);
      execute format('select coalesce(array_agg(%s), ''{}'') from only %s s',
                     rag._key_text(_source.key_column, 's'), tg_relid::regclass)
      into _keys;
    end if;
  exception
    when serialization_failure then
      raise;
    when others then
      perform rag._note_missed(_source, tg_relid, '{}', sqlstate, sqlerrm);
      return null;
  end;
  -- Null: all.
  perform rag._remove_keys(_source, _keys);
  return null;
end
$plpgsql$;
