-- Sources: attaching and detaching tables.

create or replace function rag._require_attachable(
    relation regclass, key_columns name[], path_column name, content_column name, name_column name)
  returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _kind   "char";
  _schema name;
  _owner  oid;
  _lasts  "char";
begin
  select c.relkind, n.nspname, c.relowner, c.relpersistence into _kind, _schema, _owner, _lasts
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = _require_attachable.relation;

  if relation is null then
    raise exception 'the table to attach is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'Name it like: select rag.attach_source(''"TblDocumentFiles"'', path_column => ''DocumentFilePath'');';
  elsif _kind is null then
    raise exception 'there is no table with oid %', relation::oid using errcode = 'undefined_table';
  elsif relation <> 'rag.uploads'::regclass and not pg_has_role(rag._caller(), _owner, 'usage') then
    raise exception 'must be owner of table %', relation
      using errcode = 'insufficient_privilege',
            detail  = 'Attaching makes triggers, and all rows of the table can be found by searching.',
            hint    = format('Have it attached by %s, or by a superuser.', _owner::regrole);
  elsif _kind not in ('r', 'p') then
    raise exception '% is not a table', relation
      using errcode = 'wrong_object_type',
            detail  = 'Changes are followed by triggers with transition tables, which only a table can have.',
            hint    = 'Attach the table behind it, or copy its rows into a table.';
  elsif _lasts = 't' then
    raise exception '% is a temporary table', relation
      using errcode = 'wrong_object_type',
            detail  = 'Workers are other sessions, which cannot read it.';
  elsif _schema in ('rag', 'pg_catalog', 'information_schema') and relation <> 'rag.uploads'::regclass then
    raise exception '% is a system table', relation using errcode = 'wrong_object_type';
  elsif key_columns is null then
    raise exception '% has no primary key', relation
      using errcode = 'object_not_in_prerequisite_state',
            detail  = 'A document is found again by the key of its row.',
            hint    = format('Add one: alter table %s add primary key (…);', relation);
  elsif cardinality(key_columns) > 1 then
    raise exception 'the primary key of % has % columns', relation, cardinality(key_columns)
      using errcode = 'feature_not_supported',
            detail  = 'A document has one key: an integer, or a uuid or text that is kept as source_key.',
            hint    = format('Make one column the primary key and the present one unique, such as:'
                             ' alter table %s add column id bigint generated always as identity;', relation);
  elsif (path_column is null) = (content_column is null) then
    raise exception 'exactly one of path_column and content_column is needed'
      using errcode = 'invalid_parameter_value',
            hint    = 'path_column names a column that holds file names below the document root; content_column one that holds the document'
                      ' itself, as bytea or text.';
  elsif name_column is not null and content_column is null then
    raise exception 'name_column goes with content_column'
      using errcode = 'invalid_parameter_value',
            detail  = 'It holds the file name of a document that lies in a column; a path is a name already.';
  end if;
end
$plpgsql$;
comment on function rag._require_attachable(regclass, name[], name, name, name) is
  'raises the errors of rag.attach_source() for a table of a kind, an owner or a key, or for columns, that cannot be attached';

create or replace function rag.attach_source(
    relation         regclass,
    path_column      name   default null,
    content_column   name   default null,
    name_column      name   default null,
    title_column     name   default null,
    tenant_column    name   default null,
    tags_column      name   default null,
    language_column  name   default null,
    metadata_columns name[] default '{}',
    name             text   default null)
  returns rag.sources
  language plpgsql
  -- SECURITY DEFINER: documents, jobs and partitions are written by ragstone alone. The table must be
  -- the caller's own, which is checked first.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _key      name[] := rag._key_columns(attach_source.relation);
  _key_type regtype;
  _source   rag.sources;
begin
  perform rag._require_attachable(attach_source.relation, _key, attach_source.path_column, attach_source.content_column,
                                  attach_source.name_column);

  select * into _source from rag.sources s where s.relation = attach_source.relation;
  if found then
    if (attach_source.path_column, attach_source.content_column, attach_source.name_column, attach_source.title_column,
        attach_source.tenant_column, attach_source.tags_column, attach_source.language_column, attach_source.metadata_columns)
       is not distinct from
       (_source.path_column, _source.content_column, _source.name_column, _source.title_column,
        _source.tenant_column, _source.tags_column, _source.language_column, _source.metadata_columns) then
      raise notice '% is attached already', attach_source.relation;
      return _source;
    end if;
    raise exception '% is attached already, with other columns', attach_source.relation
      using errcode = 'duplicate_object',
            hint    = format('To attach it differently, first: select rag.detach_source(%L);', attach_source.relation);
  end if;

  _key_type := rag._column_type(attach_source.relation, _key[1]);

  perform rag._ensure_partition(p.pipeline_id) from rag.pipelines p where p.state in ('active', 'building');

  -- Nobody changes a row between the triggers' birth and the list of existing rows.
  execute format('lock table %s in share row exclusive mode', attach_source.relation);
  perform rag._require_own_code(attach_source.relation);

  insert into rag.sources (name, relation, key_column, assigns_ids, path_column, content_column, name_column, title_column,
                           tenant_column, tags_column, language_column, metadata_columns)
  values (coalesce(attach_source.name, (select c.relname from pg_class c where c.oid = attach_source.relation)),
          attach_source.relation, _key[1],
          _key_type not in ('smallint'::regtype, 'integer', 'bigint'),
          attach_source.path_column, attach_source.content_column, attach_source.name_column, attach_source.title_column,
          attach_source.tenant_column, attach_source.tags_column, attach_source.language_column, attach_source.metadata_columns)
  returning * into _source;
  perform rag._require_columns(_source);
  _source := rag._follow_columns(_source);
  -- A statement on a partition fires only that partition's triggers, one on the table only the table's.
  -- The table last: to rag._after_ddl() its triggers mean that all tables below have theirs.
  perform rag._make_triggers(_source.source_id, t.relid)
  from rag._tree(_source.relation) t (relid) where t.relid <> _source.relation;
  perform rag._make_triggers(_source.source_id, _source.relation);

  perform rag.enqueue_existing(_source.relation);
  if attach_source.path_column is not null and rag.get('document_root') is null then
    raise notice 'no document root is set yet: documents fail until it is'
      using hint = 'Type: select rag.set(''document_root'', ''/folder/of/the/documents'');';
  end if;
  return _source;
end
$plpgsql$;
comment on function rag.attach_source(regclass, name, name, name, name, name, name, name, name[], text) is
  'makes every row of a table a document, now and from now on: path_column names the column with the file name below the document root, or'
  ' content_column the one with the document itself (bytea or text; name_column then tells its type where the content does not); title,'
  ' tenant (integer), tags (text[]), language and metadata columns are carried along; name is for the source filter of searches (default:'
  ' the table''s). Returns the source. Raises 42809 for a view or a temporary table, 55000 without a primary key or with functions of'
  ' others in its indexes or constraints, 0A000 for one of several columns and for virtual generated columns, 42703 and 42804 for a'
  ' column that is not there or of another type, 42710 where it is attached with other columns, 42501 for the table of another; attaching'
  ' it once more as it is changes nothing';

create or replace function rag._source(relation regclass) returns rag.sources
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
begin
  select * into _source from rag.sources s where s.relation = $1;
  if not found then
    raise exception '% is not attached', coalesce($1::text, 'the table null')
      using errcode = 'undefined_object',
            hint    = 'Attached tables are listed by: select name, relation from rag.sources;';
  end if;
  return _source;
end
$plpgsql$;
comment on function rag._source(regclass) is 'the source of an attached table; raises 42704 for another';

create or replace function rag.enqueue_existing(relation regclass) returns bigint
  language plpgsql
  -- SECURITY DEFINER: jobs are written by ragstone alone; only tables that are attached are read.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources := rag._source(enqueue_existing.relation);
  _rows   bigint;
begin
  perform rag._require_own_code(_source.relation);
  -- 10,000 keys a row: what a worker expands in one transaction of some 0.2 s.
  execute format($sql$
    with numbered as (select %1$s as key, (row_number() over (order by s.%3$I) - 1) / 10000 as batch from %2$s s where s.%3$I is not null),
         batches as (select array_agg(key) as keys from numbered group by batch order by batch)
    select coalesce(sum(cardinality(b.keys)), 0) from batches b, lateral rag._record_changes($1, b.keys, (-10)::smallint)
    $sql$, rag._key_text(_source.key_column, 's'), _source.relation, _source.key_column)
  into _rows using _source.source_id;
  return _rows;
end
$plpgsql$;
comment on function rag.enqueue_existing(regclass) is
  'looks at every row of an attached table again, behind all live changes, and returns their number; documents whose file and parameters'
  ' are the same cost no more than reading the file. Raises 42704 for a table that is not attached';

create or replace function rag.detach_source(relation regclass) returns bigint
  language plpgsql
  -- SECURITY DEFINER: takes away what ragstone made, and nothing of the table's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources := rag._source(detach_source.relation);
begin
  perform rag._drop_triggers(_source.source_id);
  return rag._forget_source(_source.source_id);
end
$plpgsql$;
comment on function rag.detach_source(regclass) is
  'takes the triggers off a table and all its documents out of search; returns how many there were. The table itself stays as it is.'
  ' Raises 42704 for a table that is not attached';

create or replace function rag._forget_source(source_id integer) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _documents bigint := rag._delete_documents(_forget_source.source_id, null);
begin
  delete from rag._changes c where c.source_id = _forget_source.source_id;
  delete from rag.sources s where s.source_id = _forget_source.source_id;
  return _documents;
end
$plpgsql$;
comment on function rag._forget_source(integer) is 'deletes a source with all its documents; returns how many there were';

create or replace function rag._follow_columns(source rag.sources) returns rag.sources
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources := source;
  _numbers jsonb := '{}';
  _renamed jsonb;
begin
  -- Columns are kept by name, for people and for pg_dump, and by number, which a rename does not
  -- change. A name that is gone, with its number still there, was renamed.
  select jsonb_object_agg(n.key, a.attname)
    into _renamed
    from jsonb_each_text(source.column_numbers) n
    join pg_attribute a on a.attrelid = source.relation and a.attnum = n.value::smallint and not a.attisdropped
   where rag._column_type(source.relation, n.key::name) is null;
  if _renamed is not null then
    update rag.sources s
       set key_column       = coalesce(_renamed ->> s.key_column, s.key_column),
           path_column      = coalesce(_renamed ->> s.path_column, s.path_column),
           content_column   = coalesce(_renamed ->> s.content_column, s.content_column),
           name_column      = coalesce(_renamed ->> s.name_column, s.name_column),
           title_column     = coalesce(_renamed ->> s.title_column, s.title_column),
           tenant_column    = coalesce(_renamed ->> s.tenant_column, s.tenant_column),
           tags_column      = coalesce(_renamed ->> s.tags_column, s.tags_column),
           language_column  = coalesce(_renamed ->> s.language_column, s.language_column),
           metadata_columns = array(select coalesce(_renamed ->> c, c)::name
                                    from unnest(s.metadata_columns) with ordinality u (c, i) order by i)
     where s.source_id = source.source_id
    returning * into _source;
  end if;
  select jsonb_object_agg(a.attname, a.attnum)
    into _numbers
    from pg_attribute a
   where a.attrelid = _source.relation and a.attname = any (rag._watched_columns(_source) || _source.key_column) and not a.attisdropped;
  update rag.sources s set column_numbers = _numbers
  where s.source_id = _source.source_id and s.column_numbers is distinct from _numbers
  returning * into _source;
  select * into _source from rag.sources s where s.source_id = source.source_id;
  return _source;
end
$plpgsql$;
comment on function rag._follow_columns(rag.sources) is
  'brings the column names of a source up to date with its table; returns the source as it is then';

-- Members: the partitions of a source, and the tables that inherit from it. Which triggers a table has
-- tells whether its rows are known.

create or replace function rag._join_source(source rag.sources, member regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _keys text[];
begin
  perform rag._make_triggers(source.source_id, member);
  execute format('select array_agg(%s) from only %s s where s.%I is not null',
                 rag._key_text(source.key_column, 's'), member, source.key_column) into _keys;
  if _keys is not null then
    perform rag._record_changes(source.source_id, _keys, (-10)::smallint);
  end if;
end
$plpgsql$;
comment on function rag._join_source(rag.sources, regclass) is 'gives a table that is read with a source its triggers, and notes its rows';

create or replace function rag._leave_source(source rag.sources, member regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _keys text[];
begin
  perform rag._drop_triggers(source.source_id, member);
  if rag._code_of_others(member) is not null or rag._column_type(member, source.key_column) is null then
    perform rag._remove_documents_without_row(source);
    return;
  end if;
  execute format('select array_agg(%s) from only %s s where s.%I is not null',
                 rag._key_text(source.key_column, 's'), member, source.key_column) into _keys;
  if _keys is not null then
    perform rag._delete_documents_without_row(source.source_id, _keys);
  end if;
end
$plpgsql$;
comment on function rag._leave_source(rag.sources, regclass) is
  'takes the triggers off a table that is read with a source no more, and its documents out of search';

create or replace function rag._remove_documents_without_row(source rag.sources) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _gone text[];
begin
  perform rag._require_own_code(source.relation);
  execute format('select array_agg(d.source_key) from rag.documents d'
                 ' where d.source_id = $1 and not exists (select from %s s where %s = d.source_key)',
                 source.relation, rag._key_text(source.key_column, 's'))
  into _gone using source.source_id;
  return case when _gone is null then 0 else rag._delete_documents_without_row(source.source_id, _gone) end;
exception
  when serialization_failure then
    raise;
  when others then
    -- Whoever drops a table need not have made ragstone's trouble.
    perform rag._note_missed(source, source.relation, '{}', sqlstate, sqlerrm);
    return 0;
end
$plpgsql$;
comment on function rag._remove_documents_without_row(rag.sources) is
  'takes all documents of a source out of search whose row is gone, at once; returns how many';

create or replace function rag._follow_members(source rag.sources) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _member  regclass;
  _changed bigint := 0;
begin
  -- A half restored dump is left alone: there the table itself has not got all its triggers.
  if not rag._has_all_triggers(source.source_id, source.relation) then
    return 0;
  end if;
  for _member in
    select t.relid from rag._tree(source.relation) t (relid)
    where not exists (select from rag._triggers(source.source_id) g where g.tgrelid = t.relid)
  loop
    perform rag._join_source(source, _member);
    _changed := _changed + 1;
  end loop;
  for _member in
    select distinct g.tgrelid::regclass from rag._triggers(source.source_id) g
    where g.tgrelid not in (select t.relid from rag._tree(source.relation) t (relid))
  loop
    perform rag._leave_source(source, _member);
    _changed := _changed + 1;
  end loop;
  return _changed;
end
$plpgsql$;
comment on function rag._follow_members(rag.sources) is
  'brings triggers and documents in line with the tables that are read with a source now; returns how many had come or gone';

-- Repair: each night each source is compared with its documents, as triggers can be switched off, dropped or go unheard.

create or replace function rag._members_followed() returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '5s'
as $plpgsql$
declare
  _source  rag.sources;
  _changed bigint := 0;
begin
  for _source in select * from rag.sources order by source_id loop
    begin
      perform rag._require_own_code(_source.relation);
      _changed := _changed + rag._follow_members(_source);
    exception when others then
      perform rag._note_problem(_source.source_id, sqlerrm);
    end;
  end loop;
  return _changed;
end
$plpgsql$;
comment on function rag._members_followed() is
  'follows partitions and inheriting tables that came or went while event triggers were off; returns how many';

create or replace function rag._queue_rows_without_document(source_id integer, after text, out last text, out number bigint)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '5s'
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
begin
  select * into strict _source from rag.sources s where s.source_id = _queue_rows_without_document.source_id;
  number := 0;
  perform rag._require_own_code(_source.relation);
  perform rag._require_columns(_source);
  -- In order of the key, by its index. Without one there is one batch, for each would read the whole table.
  execute format($sql$
    with batch as (
      select %1$s as key, s.%2$I as place from %3$s s
      where s.%2$I is not null %4$s
      order by s.%2$I %5$s
    )
    select %6$s,
           array(select b.key from batch b
                 where not exists (select from rag.documents d where d.source_id = $1 and d.source_key = b.key)
                 -- A worker will come to these.
                   and b.key not in (select k from rag._changes c, unnest(c.keys) k where c.source_id = $1 and k is not null))
    $sql$,
    rag._key_text(_source.key_column, 's'), _source.key_column, _source.relation,
    case when after is not null then format('and s.%I > $2::%s', _source.key_column,
                                            rag._type_name(rag._column_type(_source.relation, _source.key_column))) else '' end,
    case when rag._key_problem(_source) is null then 'limit 10000' else '' end,
    case when rag._key_problem(_source) is null then '(select b.key from batch b order by b.place desc limit 1)' else 'null::text' end)
  into last, _keys using _source.source_id, after;
  if _keys <> '{}' then
    number := cardinality(_keys);
    perform rag._record_changes(_source.source_id, _keys, (-10)::smallint);
  end if;
end
$plpgsql$;
comment on function rag._queue_rows_without_document(integer, text) is
  'notes rows of a source that have no document, of the next 10,000 by key; returns the last of these, null at the end, and how many';

create or replace function rag._remove_rowless_documents(source_id integer, after text, out last text, out number bigint)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '5s'
as $plpgsql$
declare
  _source rag.sources;
  _keys   text[];
  _gone   text[];
begin
  select * into strict _source from rag.sources s where s.source_id = _remove_rowless_documents.source_id;
  number := 0;
  select array_agg(b.source_key), max(b.source_key) into _keys, last
  from (select d.source_key from rag.documents d
        where d.source_id = _source.source_id and (after is null or d.source_key > after)
        order by d.source_key limit 10000) b;
  if _keys is null then
    return;
  end if;
  perform rag._require_own_code(_source.relation);
  execute format('select array_agg(k) from unnest($1) k where k not in (select %s from %s s where %s)',
                 rag._key_text(_source.key_column, 's'), _source.relation, rag._has_key_of(_source, '$1'))
  into _gone using _keys;
  if _gone is not null then
    -- What a worker has in hand stays until the next night: nobody waits here.
    number := rag._delete_documents_without_row(
      _source.source_id, array(select unnest(_gone) except select unnest(rag._busy_keys(_source.source_id, _gone))));
  end if;
end
$plpgsql$;
comment on function rag._remove_rowless_documents(integer, text) is
  'takes documents whose row is gone out of search, of the next 10,000 by key; returns the last of these, null at the end, and how many';

create or replace function rag._compare_source(step text, source_id integer, after text, out last text, out number bigint)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  case step
    when 'rows' then
      select * into last, number from rag._queue_rows_without_document(_compare_source.source_id, _compare_source.after);
      if after is null then
        -- Said anew where it still is so.
        perform rag._note_problem(s.source_id, rag._key_problem(s)) from rag.sources s where s.source_id = _compare_source.source_id;
      end if;
    when 'documents' then
      select * into last, number from rag._remove_rowless_documents(_compare_source.source_id, _compare_source.after);
  end case;
exception when others then
  -- One source that cannot be read keeps no other from being compared.
  last := null;
  number := 0;
  perform rag._note_problem(_compare_source.source_id, sqlerrm);
end
$plpgsql$;
comment on function rag._compare_source(text, integer, text) is
  'a step of comparing a source with its documents: rows without a document are noted, documents without a row removed; returns where to'
  ' go on, null at the end, and how many there were';
