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
end
$plpgsql$;
comment on function rag._require_columns(rag.sources) is
  'raises 42703, 42804 or 0A000 unless the table has all columns of the source in types that are read without calling anything of its owner''s';

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
            detail  = format('%s. Triggers and workers read the table with the rights of ragstone''s owner, and planning a query runs such functions.', _found),
            hint    = 'Do without it; or have a superuser who has read the function take it over: alter function … owner to …;';
  end if;
end
$plpgsql$;
comment on function rag._require_own_code(regclass) is 'raises 55000 where reading a table would run code of somebody who is no superuser';
