-- What a source may be: its columns and their types, and whose code would run when its table is read.

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

-- These are called for each statement on an attached table. They are in plpgsql, which keeps plans for the session: a function in SQL
-- is planned anew in each transaction.

create or replace function rag._watched_columns(source rag.sources) returns name[]
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return array_remove(array[source.path_column, source.content_column, source.name_column, source.title_column, source.tenant_column,
                            source.tags_column, source.language_column] || source.metadata_columns, null);
end
$plpgsql$;
comment on function rag._watched_columns(rag.sources) is 'columns whose change makes a document be processed again';

create or replace function rag._key_text(key_column name, row_alias text) returns text
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- A column's own collation may take different keys for equal.
  return format('(%s.%I::text collate "C")', row_alias, key_column);
end
$plpgsql$;
comment on function rag._key_text(name, text) is 'expression for the key of a row, as it is kept in source_key and compared';

create or replace function rag._key_problem(source rag.sources) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = source.relation and i.indisunique and i.indisvalid and i.indnkeyatts = 1
      and i.indpred is null and a.attname = source.key_column;
  if not found then
    return format('nothing keeps the key "%s" of %s unique any more: rows that share a key are refused',
                  source.key_column, source.relation);
  end if;
  return null;
end
$plpgsql$;
comment on function rag._key_problem(rag.sources) is 'says that the key of a source is not unique any more, null where it is';

create or replace function rag._keys_may_repeat(source rag.sources) returns boolean
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- A primary key does not reach across tables that inherit.
  return rag._key_problem(source) is not null
         or exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid
                    where i.inhparent = source.relation and not c.relispartition);
end
$plpgsql$;
comment on function rag._keys_may_repeat(rag.sources) is 'whether several rows of a source may have one key';

create or replace function rag._tree(relation regclass) returns setof regclass
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Not pg_partition_tree(), which locks all of them, and knows nothing of tables that inherit.
  with recursive tree (relid) as (
    select relation::oid
    union
    select i.inhrelid from pg_inherits i join tree t on i.inhparent = t.relid where not i.inhdetachpending
  )
  select t.relid::regclass from tree t
$sql$;
comment on function rag._tree(regclass) is 'a table, its partitions, and the tables that inherit from it: all that reading it reads';

create or replace function rag._ancestors(relation regclass) returns setof regclass
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with recursive up (relid) as (
    select relation::oid
    union
    select i.inhparent from pg_inherits i join up on i.inhrelid = up.relid where not i.inhdetachpending
  )
  select up.relid::regclass from up
$sql$;
comment on function rag._ancestors(regclass) is 'a table, and all that it is a partition of or inherits from';

create or replace function rag._type_name(type regtype) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- "character" is character(1), as a cast reads it.
  select case type when 'bpchar'::regtype then 'bpchar' else type::text end
$sql$;
comment on function rag._type_name(regtype) is 'a type, as a cast to any length of it is written';

create or replace function rag._has_key_of(source rag.sources, keys text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The first condition finds the index; only with a collation that takes different keys for equal it finds too much.
  select format('s.%I = any (%s::%s[])', source.key_column, keys,
                rag._type_name(rag._column_type(source.relation, source.key_column)))
         || case when exists (select from pg_attribute a join pg_collation c on c.oid = a.attcollation
                              where a.attrelid = source.relation and a.attname = source.key_column and not c.collisdeterministic)
                 then format(' and %s = any (%s)', rag._key_text(source.key_column, 's'), keys) else '' end
$sql$;
comment on function rag._has_key_of(rag.sources, text) is
  'condition on a row s of a source: its key is one of keys, an expression of type text[]';

create or replace function rag._require_column(relation regclass, column_name name, parameter text, types regtype[]) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _type    regtype := rag._column_type(relation, column_name);
  _virtual text;
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
  select pg_get_expr(d.adbin, d.adrelid) into _virtual
    from pg_attribute a
    join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = relation and a.attname = column_name and a.attgenerated = 'v';
  if found then
    raise exception 'column "%" of table % is a virtual generated column', column_name, relation
      using errcode = 'feature_not_supported',
            detail  = 'PostgreSQL does not give its values to triggers, so changes of them would not be seen.',
            hint    = format('Make it a stored one: alter table %s drop column %I, add column %I %s generated always as (%s) stored;',
                             relation, column_name, column_name, _type, _virtual);
  end if;
end
$plpgsql$;
comment on function rag._require_column(regclass, name, text, regtype[]) is
  'raises 42703 or 42804 unless the table has the column in one of the types, 0A000 where triggers do not see its values';

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
  if not source.assigns_ids then
    -- It was an integer, and is the document_id.
    perform rag._require_column(source.relation, source.key_column, 'The primary key', '{smallint,integer,bigint}');
  end if;
end
$plpgsql$;
comment on function rag._require_columns(rag.sources) is
  'raises 42703, 42804 or 0A000 unless the table has all columns of the source, in types that are read without calling code of its owner';

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
comment on function rag._has_trusted_type(regclass, name) is
  'whether a column''s type is a superuser''s, so that nobody else can give it a cast';

create or replace function rag._code_of_others(relation regclass) returns text
  -- Called for each batch of a worker: not in SQL, whose plan would be made anew each time, and by the
  -- catalog's indexes, however small the catalog is.
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
as $plpgsql$
declare
  _tree  oid[] := array[relation];
  _found text;
begin
  if exists (select from pg_inherits i where i.inhparent = relation) then
    select array_agg(t.relid) into _tree from rag._tree(relation) t (relid);
  end if;
  select format('%s is not a table', c.oid::regclass) into _found
  from pg_class c where c.oid = any (_tree) and c.relkind not in ('r', 'p') limit 1;
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
comment on function rag._code_of_others(regclass) is
  'what in a table''s indexes, statistics, constraints, rules or partition key would run a function of somebody who is no superuser, or'
  ' what is read along with it and is no table; null where nothing would';

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
            detail  = format('%s. Workers read the table with the rights of ragstone''s owner, and planning a query runs such functions.',
                             _found),
            hint    = 'Do without it; or have a superuser who has read the function take it over: alter function … owner to …;';
  end if;
end
$plpgsql$;
comment on function rag._require_own_code(regclass) is 'raises 55000 where reading a table would run code of somebody who is no superuser';
