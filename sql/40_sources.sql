-- Sources: attaching tables, and turning changes of their rows into documents and jobs.
--
-- A statement of up to 100 changed rows becomes documents and jobs in its own transaction. A larger
-- one only notes its keys in rag._changes, which a worker expands: a bulk load stays fast.

create or replace function rag._key_columns(relation regclass) returns name[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select array_agg(a.attname order by k.place)
  from pg_index i, unnest(i.indkey) with ordinality as k (attnum, place), pg_attribute a
  where i.indrelid = relation and i.indisprimary and a.attrelid = relation and a.attnum = k.attnum
$sql$;
comment on function rag._key_columns(regclass) is 'columns of the primary key, null where there is none';

create or replace function rag._column_type(relation regclass, column_name name) returns regtype
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select a.atttypid::regtype from pg_attribute a
  where a.attrelid = relation and a.attname = column_name and a.attnum > 0 and not a.attisdropped
$sql$;
comment on function rag._column_type(regclass, name) is 'type of a column, null where there is no such column';

create or replace function rag._watched_columns(source rag.sources) returns name[]
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select array_remove(array[source.path_column, source.content_column, source.name_column, source.title_column, source.tenant_column,
                            source.tags_column, source.language_column] || source.metadata_columns, null)
$sql$;
comment on function rag._watched_columns(rag.sources) is 'columns whose change makes a document be processed again';

create or replace function rag._require_column(relation regclass, column_name name, parameter text, types regtype[]) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _type regtype := rag._column_type(relation, column_name);
begin
  if column_name is null then
    return;
  end if;
  if _type is null then
    raise exception 'table % has no column "%"', relation, column_name
      using errcode = 'undefined_column',
            detail  = format('It is named by %s.', parameter),
            hint    = format('Its columns are: %s. Names are case-sensitive here and take no quotes.',
                             (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
                              where a.attrelid = relation and a.attnum > 0 and not a.attisdropped));
  end if;
  if types is not null and _type <> all (types) then
    raise exception 'column "%" of table % is of type %', column_name, relation, _type
      using errcode = 'datatype_mismatch',
            detail  = format('%s takes a column of type %s.', parameter, array_to_string(types, ', '));
  end if;
end
$plpgsql$;
comment on function rag._require_column(regclass, name, text, regtype[]) is 'raises 42703 or 42804 unless the table has the column in one of the types';

create or replace function rag._require_columns(source rag.sources) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _column name;
begin
  perform rag._require_column(source.relation, source.key_column, 'The primary key',
                              '{smallint,integer,bigint,uuid,text,varchar,char,name}');
  perform rag._require_column(source.relation, source.path_column, 'path_column', '{text,varchar,char,name}');
  perform rag._require_column(source.relation, source.content_column, 'content_column', '{text,varchar,char,bytea}');
  perform rag._require_column(source.relation, source.name_column, 'name_column', '{text,varchar,char,name}');
  perform rag._require_column(source.relation, source.title_column, 'title_column', '{text,varchar,char,name}');
  perform rag._require_column(source.relation, source.tenant_column, 'tenant_column', '{smallint,integer,bigint}');
  perform rag._require_column(source.relation, source.tags_column, 'tags_column', '{text[],varchar[]}');
  perform rag._require_column(source.relation, source.language_column, 'language_column', '{text,varchar,char,name}');
  foreach _column in array source.metadata_columns loop
    perform rag._require_column(source.relation, _column, 'metadata_columns', null);
  end loop;
end
$plpgsql$;
comment on function rag._require_columns(rag.sources) is 'raises 42703 or 42804 unless the table has all columns of the source in types that are read without calling anything of its owner''s';

create or replace function rag._code_of_others(relation regclass) returns text
  -- For each statement on an attached table: not SQL, whose plan would be made anew each time, and by
  -- the catalog's indexes, however small it is.
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
as $plpgsql$
declare
  _tree  oid[] := array[relation];
  _found text;
begin
  if exists (select from pg_inherits i where i.inhparent = relation) then
    -- What is read along with it: partitions, and tables that inherit from it.
    with recursive tree (relid) as (
      select relation::oid
      union
      select i.inhrelid from pg_inherits i join tree t on i.inhparent = t.relid
    )
    select array_agg(t.relid) into _tree from tree t;
  end if;
  select format('%s is not a table', c.oid::regclass) into _found from pg_class c where c.oid = any (_tree) and c.relkind not in ('r', 'p') limit 1;
  if found then
    return _found;
  end if;
  select format('%s has %s, which belongs to %s', pg_describe_object(p.class, p.id, 0), f.oid::regprocedure, r.rolname)
    into _found
    from (select 'pg_class'::regclass as class, u.relid as id from unnest(_tree) u (relid)
          union all
          select 'pg_class'::regclass, i.indexrelid from pg_index i where i.indrelid = any (_tree)
          union all
          select 'pg_statistic_ext'::regclass, s.oid from pg_statistic_ext s where s.stxrelid = any (_tree)
          union all
          select 'pg_constraint'::regclass, c.oid from pg_constraint c where c.conrelid = any (_tree)
          union all
          select 'pg_rewrite'::regclass, w.oid from pg_rewrite w where w.ev_class = any (_tree)) p
   cross join lateral (select d.refclassid, d.refobjid from pg_depend d where d.classid = p.class and d.objid = p.id offset 0) d
    join pg_proc f on f.oid = case d.refclassid when 'pg_proc'::regclass then d.refobjid
                      when 'pg_operator'::regclass then (select o.oprcode from pg_operator o where o.oid = d.refobjid) end
    join pg_roles r on r.oid = f.proowner
   where not r.rolsuper
   limit 1;
  return _found;
end
$plpgsql$;
comment on function rag._code_of_others(regclass) is 'what in a table''s indexes, statistics, constraints, rules or partition key would run a function of somebody who is no superuser, or what is read along with it and is no table; null where nothing would';

create or replace function rag._require_own_code(relation regclass) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _found constant text := rag._code_of_others(relation);
begin
  if _found is not null then
    raise exception '% cannot be read safely', relation
      using errcode = 'object_not_in_prerequisite_state',
            detail  = format('%s. Triggers and workers read the table with the rights of ragstone''s owner, and planning a query runs such functions.', _found),
            hint    = 'Do without it; or have a superuser who has read the function take it over: alter function … owner to …;';
  end if;
end
$plpgsql$;
comment on function rag._require_own_code(regclass) is 'raises 55000 where reading a table would run code of somebody who is no superuser';

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
comment on function rag._trigger_kinds() is 'the triggers of an attached table; fires as in pg_trigger.tgenabled: O in ordinary sessions, R in those that replicate, A in both';

create or replace function rag._triggers(source_id integer) returns setof pg_trigger
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select t.* from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal
    -- The server itself gives those of rows to the partitions.
    and t.tgparentid = 0
    and t.tgargs = convert_to(source_id::text, 'UTF8') || '\x00'
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
comment on function rag._source_of_trigger(integer, regclass) is 'the source that a trigger of this table was made for, if it is still attached';

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
comment on function rag._make_triggers(integer, regclass) is 'makes the triggers of a source on its table, or those of statements on one of that table''s partitions';

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
comment on function rag._has_all_triggers(integer, regclass) is 'whether a source''s table, or a partition of it, has all its triggers, each firing where it shall';

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
  _kind     "char";
  _relname  name;
  _schema   name;
  _owner    oid;
  _lasts    "char";
  _key      name[] := rag._key_columns(attach_source.relation);
  _key_type regtype;
  _source   rag.sources;
begin
  select c.relkind, c.relname, n.nspname, c.relowner, c.relpersistence into _kind, _relname, _schema, _owner, _lasts
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = attach_source.relation;

  if attach_source.relation is null then
    raise exception 'the table to attach is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'Name it like: select rag.attach_source(''"TblDocumentFiles"'', path_column => ''DocumentFilePath'');';
  elsif _kind is null then
    raise exception 'there is no table with oid %', attach_source.relation::oid using errcode = 'undefined_table';
  elsif attach_source.relation <> 'rag.uploads'::regclass and not pg_has_role(rag._caller(), _owner, 'usage') then
    raise exception 'must be owner of table %', attach_source.relation
      using errcode = 'insufficient_privilege',
            detail  = 'Attaching makes triggers, and all rows of the table can be found by searching.',
            hint    = format('Have it attached by %s, or by a superuser.', _owner::regrole);
  elsif _kind not in ('r', 'p') then
    raise exception '% is not a table', attach_source.relation
      using errcode = 'wrong_object_type',
            detail  = 'Changes are followed by triggers with transition tables, which only a table can have.',
            hint    = 'Attach the table behind it, or copy its rows into a table.';
  elsif _lasts = 't' then
    raise exception '% is a temporary table', attach_source.relation
      using errcode = 'wrong_object_type',
            detail  = 'Workers are other sessions, which cannot read it.';
  elsif _schema in ('rag', 'pg_catalog', 'information_schema') and attach_source.relation <> 'rag.uploads'::regclass then
    raise exception '% is a system table', attach_source.relation using errcode = 'wrong_object_type';
  elsif _key is null then
    raise exception '% has no primary key', attach_source.relation
      using errcode = 'object_not_in_prerequisite_state',
            detail  = 'A document is found again by the key of its row.',
            hint    = format('Add one: alter table %s add primary key (…);', attach_source.relation);
  elsif cardinality(_key) > 1 then
    raise exception 'the primary key of % has % columns', attach_source.relation, cardinality(_key)
      using errcode = 'feature_not_supported',
            detail  = 'A document has one key: an integer, or a uuid or text that is kept as source_key.',
            hint    = format('Make one column the primary key and the present one unique, such as: alter table %s add column id bigint generated always as identity;', attach_source.relation);
  elsif (attach_source.path_column is null) = (attach_source.content_column is null) then
    raise exception 'exactly one of path_column and content_column is needed'
      using errcode = 'invalid_parameter_value',
            hint    = 'path_column names a column that holds file names below the document root; content_column one that holds the document itself, as bytea or text.';
  elsif attach_source.name_column is not null and attach_source.content_column is null then
    raise exception 'name_column goes with content_column'
      using errcode = 'invalid_parameter_value',
            detail  = 'It holds the file name of a document that lies in a column; a path is a name already.';
  end if;

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
  values (coalesce(attach_source.name, _relname), attach_source.relation, _key[1],
          _key_type not in ('smallint'::regtype, 'integer', 'bigint'),
          attach_source.path_column, attach_source.content_column, attach_source.name_column, attach_source.title_column,
          attach_source.tenant_column, attach_source.tags_column, attach_source.language_column, attach_source.metadata_columns)
  returning * into _source;
  perform rag._require_columns(_source);
  _source := rag._follow_columns(_source);
  -- A statement on a partition fires only that partition's triggers, one on the table only the table's.
  -- The table last: rag._after_ddl() takes its triggers for the sign that all is done.
  perform rag._make_triggers(_source.source_id, t.relid)
  from (select t.relid from pg_partition_tree(_source.relation) t where t.relid <> _source.relation) t;
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
  'makes every row of a table a document, now and from now on: path_column names the column with the file name below the document root, or content_column the one with the document itself (bytea or text; name_column then tells its type where the content does not); title, tenant (integer), tags (text[]), language and metadata columns are carried along; name is for the source filter of searches (default: the table''s). Returns the source. Raises 42809 for a view or a temporary table, 55000 without a primary key or with functions of others in its indexes or constraints, 0A000 for one of several columns, 42703 and 42804 for a column that is not there or of another type, 42710 where it is attached with other columns, 42501 for the table of another; attaching it once more as it is changes nothing';

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
    with numbered as (select %1$I::text as key, (row_number() over (order by %1$I) - 1) / 10000 as batch from %2$s),
         batches as (select array_agg(key) as keys from numbered group by batch order by batch)
    select coalesce(sum(cardinality(b.keys)), 0) from batches b, lateral rag._record_changes($1, b.keys, (-10)::smallint)
    $sql$, _source.key_column, _source.relation)
  into _rows using _source.source_id;
  return _rows;
end
$plpgsql$;
comment on function rag.enqueue_existing(regclass) is 'looks at every row of an attached table again, behind all live changes, and returns their number; documents whose file and parameters are the same cost no more than reading the file. Raises 42704 for a table that is not attached';

create or replace function rag.detach_source(relation regclass) returns bigint
  language plpgsql
  -- SECURITY DEFINER: takes away what ragstone made, and nothing of the table's owner.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source  rag.sources := rag._source(detach_source.relation);
  _trigger record;
begin
  for _trigger in select t.tgname, t.tgrelid::regclass as relation from rag._triggers(_source.source_id) t loop
    execute format('drop trigger %I on %s', _trigger.tgname, _trigger.relation);
  end loop;
  return rag._forget_source(_source.source_id);
end
$plpgsql$;
comment on function rag.detach_source(regclass) is 'takes the triggers off a table and all its documents out of search; returns how many there were. The table itself stays as it is. Raises 42704 for a table that is not attached';

------------------------------------------------------------------------------------------------
-- Changes
------------------------------------------------------------------------------------------------

create or replace function rag._notify_change(operation text, document_id bigint, file_path text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A payload has less than 8,000 bytes, and each of a path's can take six there; one too long is left
  -- to the reader to look up.
  select pg_notify('document_changes', case when octet_length(p.whole) < 8000 then p.whole else p.short end)
  from (select json_build_object('operation', operation, 'document_id', document_id, 'file_path', file_path, 'timestamp', now())::text as whole,
               json_build_object('operation', operation, 'document_id', document_id, 'file_path', null, 'timestamp', now())::text as short) p
$sql$;
comment on function rag._notify_change(text, bigint, text) is 'tells channel document_changes of one document, in the payload of the earlier worker';

create or replace function rag._column_or_null(column_name name, type text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case when column_name is null then 'null::' || type else format('s.%I::%s', column_name, type) end $sql$;
comment on function rag._column_or_null(name, text) is 'expression for a column of the source''s row s, null where it has none';

create or replace function rag._has_trusted_type(relation regclass, column_name name) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with recursive types as (
    select t.typbasetype, t.typowner from pg_type t where t.oid = rag._column_type(relation, column_name)
    union all
    -- json sees through domains.
    select t.typbasetype, t.typowner from types d join pg_type t on t.oid = d.typbasetype
  )
  select r.rolsuper from types t join pg_roles r on r.oid = t.typowner where t.typbasetype = 0
$sql$;
comment on function rag._has_trusted_type(regclass, name) is 'whether a column''s type is a superuser''s, so that nobody else can give it a cast';

create or replace function rag._jsonb_of(value json) returns jsonb
  language plpgsql immutable strict
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return value::jsonb;
exception when data_exception then
  -- json takes what no text can hold, such as \u0000, and numbers beyond all bounds.
  return to_jsonb(value::text);
end
$plpgsql$;
comment on function rag._jsonb_of(json) is 'the value as jsonb; as a string where it holds what jsonb cannot';

create or replace function rag._metadata_expression(source rag.sources) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A jsonb object is taken as it is, any other column under its name. Making json calls a cast of the
  -- type where there is one; writing it as text calls only the type's own output.
  select coalesce(string_agg(format(
           case when rag._column_type(source.relation, c) = 'jsonb'::regtype
                then 'case jsonb_typeof(s.%1$I) when ''object'' then s.%1$I else jsonb_build_object(%1$L, s.%1$I) end'
                when rag._column_type(source.relation, c) = 'json'::regtype
                then 'jsonb_build_object(%1$L, rag._jsonb_of(s.%1$I))'
                when rag._has_trusted_type(source.relation, c)
                then 'jsonb_build_object(%1$L, s.%1$I)'
                else 'jsonb_build_object(%1$L, case when s.%1$I is not null then format(''%%s'', s.%1$I) end)' end, c), ' || ' order by i), '''{}''::jsonb')
  from unnest(source.metadata_columns) with ordinality u (c, i)
$sql$;
comment on function rag._metadata_expression(rag.sources) is 'expression for the metadata of the source''s row s';

create or replace function rag._expand_keys(source_id integer, keys text[], priority smallint) returns text[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _locked text[];
begin
  select * into _source from rag.sources s where s.source_id = _expand_keys.source_id;
  perform rag._require_own_code(_source.relation);

  -- Key share, as a foreign key takes it: a row that is being deleted right now must not become a
  -- document behind the back of its delete trigger. Rows that somebody holds are left for later.
  execute format($sql$
    with present as (
      select s.%1$I::text as key, %2$s as file_path, %3$s as title, %4$s as tenant_id, %5$s as tags, %6$s as language, %7$s as metadata
      from %8$s s
      where s.%1$I = any ($2::%9$s[])
      for key share of s skip locked
    ),
    changed as (
      insert into rag.documents as d (source_id, document_id, source_key, file_path, title, tenant_id, tags, language, metadata)
      select $1, %10$s, p.key, p.file_path, p.title, p.tenant_id, p.tags, p.language, p.metadata
      from present p
      order by p.key
      on conflict on constraint documents_source_id_source_key_key do update
        set generation = nextval('rag._generation_seq'), status = 'pending', retry_count = 0,
            file_path = excluded.file_path, title = excluded.title, tenant_id = excluded.tenant_id, tags = excluded.tags,
            language = excluded.language, metadata = excluded.metadata,
            -- A row that is only looked at again has not changed.
            updated_at = case when $3 < 0 and (d.file_path, d.title, d.tenant_id, d.tags, d.language, d.metadata)
                                              is not distinct from
                                              (excluded.file_path, excluded.title, excluded.tenant_id, excluded.tags, excluded.language, excluded.metadata)
                              then d.updated_at else now() end
      returning d.document_id, d.tenant_id, d.file_path, d.source_key, d.xmax = 0 as is_new
    ),
    queued as (
      insert into rag.ingestion_queue as q (source_id, document_id, pipeline_id, priority, tenant_id)
      select $1, c.document_id, p.pipeline_id, $3, coalesce(c.tenant_id, 0)
      from changed c, rag.pipelines p
      where p.state in ('active', 'building')
      order by c.document_id
      on conflict (source_id, document_id, pipeline_id) where status <> 'running' do update
        set status = 'queued', attempts = 0, run_at = case when q.status = 'queued' and q.attempts = 0 then q.run_at else now() end,
            priority = greatest(q.priority, excluded.priority),
            tenant_id = excluded.tenant_id,
            failure = null, stage = null, error_code = null, error = null, error_hint = null, failed_at = null
    ),
    notified as (
      select rag._notify_change(case when c.is_new then 'INSERT' else 'UPDATE' end, c.document_id, c.file_path)
      from changed c
      where rag.get('notifications') = 'on'
    )
    select array_agg(s.%1$I::text)
    from %8$s s
    where s.%1$I = any ($2::%9$s[]) and s.%1$I::text not in (select source_key from changed)
      and (select count(*) from notified) >= 0
    $sql$,
    _source.key_column,
    rag._column_or_null(coalesce(_source.path_column, _source.name_column), 'text'),
    rag._column_or_null(_source.title_column, 'text'),
    rag._column_or_null(_source.tenant_column, 'bigint'),
    rag._column_or_null(_source.tags_column, 'text[]'),
    rag._column_or_null(_source.language_column, 'text'),
    rag._metadata_expression(_source),
    _source.relation,
    rag._column_type(_source.relation, _source.key_column),
    case when _source.assigns_ids then 'nextval(''rag._document_id_seq'')' else 'p.key::bigint' end)
  into _locked using _expand_keys.source_id, _expand_keys.keys, _expand_keys.priority;
  return _locked;
end
$plpgsql$;
comment on function rag._expand_keys(integer, text[], smallint) is 'makes rows of a source documents with a new generation and queues them; returns the keys of rows that another transaction has locked, to be tried again';

create or replace function rag._record_changes(source_id integer, keys text[], priority smallint) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _later text[] := _record_changes.keys;
begin
  if cardinality(_later) <= 100 then
    _later := rag._expand_keys(_record_changes.source_id, _later, _record_changes.priority);
  end if;
  if cardinality(_later) <= 10000 then
    insert into rag._changes (source_id, keys, priority) values (_record_changes.source_id, _later, _record_changes.priority);
  elsif _later is not null then
    insert into rag._changes (source_id, keys, priority)
    select _record_changes.source_id, array_agg(k), _record_changes.priority
    from unnest(_later) with ordinality u (k, i)
    group by (i - 1) / 10000;
  end if;
end
$plpgsql$;
comment on function rag._record_changes(integer, text[], smallint) is 'queues changed rows: at once where they are few, else through rag._changes, 10,000 keys a row';

create or replace function rag._refuse_row(source_id integer, key text, code text, message text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
#variable_conflict use_column
declare
  _hint        constant text := 'Correct the row: its update is looked at anew.';
  _assigns_ids boolean;
  _document    rag.documents;
begin
  select s.assigns_ids into strict _assigns_ids from rag.sources s where s.source_id = _refuse_row.source_id;
  insert into rag.documents as d (source_id, document_id, source_key, status, error_code, last_error, error_hint)
  values (_refuse_row.source_id, case when _assigns_ids then nextval('rag._document_id_seq') else _refuse_row.key::bigint end,
          _refuse_row.key, 'failed', _refuse_row.code, _refuse_row.message, _hint)
  on conflict on constraint documents_source_id_source_key_key do update
    set generation = nextval('rag._generation_seq'), status = 'failed', error_code = excluded.error_code,
        last_error = excluded.last_error, error_hint = excluded.error_hint, updated_at = now()
  returning * into _document;
  insert into rag.ingestion_queue as q (source_id, document_id, pipeline_id, tenant_id, status, failure, stage, error_code, error, error_hint, failed_at)
  select _document.source_id, _document.document_id, p.pipeline_id, coalesce(_document.tenant_id, 0), 'dead', 'permanent', 'read',
         _refuse_row.code, _refuse_row.message, _hint, now()
  from rag.pipelines p
  where p.state in ('active', 'building')
  on conflict (source_id, document_id, pipeline_id) where status <> 'running' do update
    set status = 'dead', failure = excluded.failure, stage = excluded.stage, error_code = excluded.error_code,
        error = excluded.error, error_hint = excluded.error_hint, failed_at = excluded.failed_at;
exception
  when program_limit_exceeded then
    raise warning 'a row of source % has a key that is too long for a document', _refuse_row.source_id
      using detail = format('It begins with %s and has %s bytes.', left(_refuse_row.key, 40), octet_length(_refuse_row.key));
end
$plpgsql$;
comment on function rag._refuse_row(integer, text, text, text) is 'makes a row that cannot become a document a failed one, and a dead letter';

create or replace function rag._expand_changes(min_priority smallint) returns integer
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Whoever holds a table or a row must not hold up other sources.
  set lock_timeout = '5s'
as $plpgsql$
declare
  _change rag._changes;
  _left   text[];
begin
  select * into _change
    from rag._changes c
   where c.priority >= _expand_changes.min_priority
   order by c.priority desc, c.change_id
   limit 1
     for update skip locked;
  if not found then
    return 0;
  end if;
  delete from rag._changes c where c.change_id = _change.change_id;
  if not exists (select from rag.sources s join pg_class c on c.oid = s.relation where s.source_id = _change.source_id) then
    -- Dropped while nobody was told, as event triggers can be switched off.
    perform rag._forget_source(_change.source_id);
    return cardinality(_change.keys);
  end if;
  begin
    _left := rag._expand_keys(_change.source_id, _change.keys, _change.priority);
  exception
    when data_exception or integrity_constraint_violation or program_limit_exceeded then
      -- One row must not take the others along: halves, until it is alone.
      if cardinality(_change.keys) = 1 then
        perform rag._refuse_row(_change.source_id, _change.keys[1], sqlstate, sqlerrm);
      else
        insert into rag._changes (source_id, keys, priority, created_at)
        select _change.source_id, h.keys, _change.priority, _change.created_at
        from (select cardinality(_change.keys) / 2 as middle) m,
             lateral (values (_change.keys[:m.middle]), (_change.keys[m.middle + 1:])) h (keys);
      end if;
      return cardinality(_change.keys);
    when lock_not_available or object_not_in_prerequisite_state then
      _left := _change.keys;
  end;
  if _left is not null then
    -- To the back of the line, so that rows locked for long hold up no others.
    insert into rag._changes (source_id, keys, priority, created_at)
    values (_change.source_id, _left, _change.priority, _change.created_at);
  end if;
  return cardinality(_change.keys) - coalesce(cardinality(_left), 0);
end
$plpgsql$;
comment on function rag._expand_changes(smallint) is 'turns one row of rag._changes into documents and jobs; returns how many, 0 where there is nothing to do, or nothing that can be done now';

create or replace function rag._delete_documents(source_id integer, keys text[]) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _ids bigint[];
begin
  -- First the documents: this waits for a worker that is just storing one, and the next statement
  -- then sees the chunks it stored.
  with gone as (
    delete from rag.documents d
     where d.source_id = _delete_documents.source_id
       and (_delete_documents.keys is null or d.source_key = any (_delete_documents.keys))
    returning d.document_id, d.file_path
  ), notified as (
    select rag._notify_change('DELETE', g.document_id, g.file_path) from gone g where rag.get('notifications') = 'on'
  )
  select array_agg(g.document_id) into _ids from gone g where (select count(*) from notified) >= 0;

  delete from rag.ingestion_queue q where q.source_id = _delete_documents.source_id and q.document_id = any (_ids);
  with gone as (
    delete from rag.document_versions v
     where v.source_id = _delete_documents.source_id and v.document_id = any (_ids)
    returning v.version_id
  )
  delete from rag._retained_chunks r where r.version_id in (select g.version_id from gone g);

  with gone as (
    delete from rag.document_chunks c
     where c.source_id = _delete_documents.source_id
       and (_delete_documents.keys is null or c.document_id = any (_ids))
    returning c.pipeline_id, c.text_search_config, c.content_tsv
  )
  insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
  select g.pipeline_id, g.text_search_config, -1, g.content_tsv from gone g;
  return coalesce(cardinality(_ids), 0);
end
$plpgsql$;
comment on function rag._delete_documents(integer, text[]) is 'takes documents of a source (keys null: all) out of search, with their jobs and versions; returns how many';

-- The trigger functions are SECURITY DEFINER: who may change the user''s table needs no privilege on
-- ragstone's own tables. Their only input is the source's id, which the trigger's definition fixes.

create or replace function rag._new_rows(level text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case level when 'ROW' then '(select ($2).*)' else 'new_rows' end $sql$;
comment on function rag._new_rows(text) is 'what a trigger reads changed rows from: its transition table, or the one row, which is passed as parameter 2';

create or replace function rag._old_rows(level text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case level when 'ROW' then '(select ($1).*)' else 'old_rows' end $sql$;
comment on function rag._old_rows(text) is 'what a trigger reads former rows from: its transition table, or the one row, which is passed as parameter 1';

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
  -- SECURITY DEFINER: as told above.
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
  -- SECURITY DEFINER: as told above.
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
  -- SECURITY DEFINER: as told above.
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
  -- SECURITY DEFINER: as told above.
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

------------------------------------------------------------------------------------------------
-- Changes of the table's definition
------------------------------------------------------------------------------------------------

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
  -- pg_restore --disable-triggers switches all triggers of a table off and, after its data, on. The one
  -- on rag.pipelines is what lets its data in; those of sources fire where they did before.
  for _trigger in
    select t.tgname, t.tgrelid::regclass as relation, coalesce(k.fires, 'A') as fires
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid left join rag._trigger_kinds() k on k.tgname = t.tgname
    where p.pronamespace = 'rag'::regnamespace and not t.tgisinternal
      and case when p.proname = '_restore_pipeline' then t.tgenabled = 'D' else t.tgenabled <> 'D' and t.tgenabled <> k.fires end
      and t.tgrelid in (select d.objid from pg_event_trigger_ddl_commands() d where d.classid = 'pg_class'::regclass)
  loop
    perform rag._set_firing(_trigger.relation, _trigger.tgname, _trigger.fires);
  end loop;

  perform rag._require_own_code(s.relation)
  from rag.sources s
  where s.relation in (
    with recursive up (relid) as (
      select case d.classid when 'pg_class'::regclass then coalesce((select i.indrelid from pg_index i where i.indexrelid = d.objid), d.objid)
                            when 'pg_rewrite'::regclass then (select r.ev_class from pg_rewrite r where r.oid = d.objid)
                            when 'pg_statistic_ext'::regclass then (select x.stxrelid from pg_statistic_ext x where x.oid = d.objid) end
      from pg_event_trigger_ddl_commands() d
      union
      select i.inhparent from pg_inherits i join up on i.inhrelid = up.relid
    )
    select u.relid from up u where u.relid is not null);

  for _source in
    -- Ancestors are looked up; a tree is locked, and sessions that each alter a partition would wait for
    -- each other.
    select s.* from rag.sources s
    where exists (select from pg_event_trigger_ddl_commands() d
                  where d.classid = 'pg_class'::regclass
                    and (d.objid = s.relation or s.relation in (select a.relid from pg_partition_ancestors(d.objid) a)))
  loop
    _source := rag._follow_columns(_source);
    -- Triggers read these columns with the rights of ragstone's owner: a type of the table's owner,
    -- with a cast of their own, would be run with those rights.
    perform rag._require_columns(_source);
    -- A new partition has none, while the table has all: a half restored dump is left alone.
    perform rag._make_triggers(_source.source_id, t.relid)
    from (select distinct n.relid
          from pg_event_trigger_ddl_commands() d
          join pg_class c on c.oid = d.objid and c.relkind in ('r', 'p')
          cross join lateral (select d.objid::regclass as relid
                              union all
                              select t.relid from pg_partition_tree(case when c.relkind = 'p' then c.oid end) t) n
          where d.classid = 'pg_class'::regclass
            and _source.relation in (select a.relid from pg_partition_ancestors(d.objid) a union all select d.objid)) t
    where rag._has_all_triggers(_source.source_id, _source.relation)
      and not exists (select from rag._triggers(_source.source_id) g where g.tgrelid = t.relid);
  end loop;
end
$plpgsql$;
comment on function rag._after_ddl() is 'follows renamed columns of attached tables, gives new partitions their triggers, keeps triggers firing as they shall, and keeps code of others out of what is read';

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
           metadata_columns = array(select coalesce(_renamed ->> c, c)::name from unnest(s.metadata_columns) with ordinality u (c, i) order by i)
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
comment on function rag._follow_columns(rag.sources) is 'brings the column names of a source up to date with its table; returns the source as it is then';

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
end
$plpgsql$;
comment on function rag._after_drop() is 'takes the documents of a dropped table out of search, and keeps watched columns from being dropped';

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
