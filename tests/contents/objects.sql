select line from (
  select 1 as kind, format('%s %s(%s)%s', case p.prokind when 'p' then 'procedure' else 'function' end, p.oid::regproc,
                           pg_get_function_arguments(p.oid), ' returns ' || nullif(pg_get_function_result(p.oid), '')) as line
  from pg_proc p
  where p.pronamespace = 'rag'::regnamespace and p.proname !~ '^_'
  union all
  select 2, format('%s %s (%s)', case c.relkind when 'v' then 'view' when 'c' then 'type' else 'table' end, c.oid::regclass,
                   string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum))
  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  where c.relnamespace = 'rag'::regnamespace and c.relname !~ '^_' and c.relkind in ('r', 'p', 'v', 'c') and not c.relispartition
  group by c.oid, c.relkind
) o
order by kind, line collate "C"
