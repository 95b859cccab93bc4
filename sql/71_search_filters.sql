-- Search: filters as conditions on a chunk.

create or replace function rag._readable_in_source() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The condition reads the source table as the caller, so that its privileges and its row security decide.
  select coalesce(string_agg(
           format('c.source_id = %s and exists (select from %s s where s.%I = %s)', s.source_id, s.relation, s.key_column,
                  case when s.assigns_ids
                       then format('(select d.source_key from rag.documents d'
                                   ' where d.source_id = c.source_id and d.document_id = c.document_id)::%s',
                                   rag._type_name(rag._column_type(s.relation, s.key_column)))
                       else 'c.document_id' end), ' or '), 'false')
  from rag.sources s
  join pg_class r on r.oid = s.relation
  where has_schema_privilege(r.relnamespace, 'usage')
    and (has_table_privilege(s.relation, 'select') or has_column_privilege(s.relation, s.key_column, 'select'))
$sql$;
comment on function rag._readable_in_source() is 'condition on a chunk c: the caller can read its row in the source table';

create or replace function rag._search_filter(options rag._search_options, condition tsquery) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (
    select coalesce(string_agg(' and (' || f.sql || ')', '' order by f.place), '')
    from (values
      (1, options.document_filter is not null, 'c.document_id = any (($1).document_filter)'),
      (2, options.tenant_filter is not null, 'c.tenant_id = ($1).tenant_filter'),
      (3, options.source is not null,
          format('c.source_id = %s', (select s.source_id from rag.sources s where s.name = options.source))),
      (4, options.tags_filter is not null,
          case options.tags_match when 'any' then 'c.tags && ($1).tags_filter' else 'c.tags @> ($1).tags_filter' end),
      (5, options.language is not null, 'c.language = ($1).language'),
      -- The lexeme ~~english in the condition lets all English passages pass, see rag._text_condition().
      (6, condition is not null,
          case when strpos(condition::text, '''~~') = 0 then 'c.content_tsv operator(rag.@@) $2'
               else '(c.content_tsv || array_to_tsvector(array[''~~'' || c.text_search_config])) operator(rag.@@) $2' end),
      (7, num_nonnulls(options.metadata_filter, options.changed_after, options.changed_before) > 0,
          'exists (select from rag.documents d where d.source_id = c.source_id and d.document_id = c.document_id'
          || case when options.metadata_filter is not null then ' and d.metadata @> ($1).metadata_filter' else '' end
          || case when options.changed_after is not null then ' and d.updated_at >= ($1).changed_after' else '' end
          || case when options.changed_before is not null then ' and d.updated_at < ($1).changed_before' else '' end || ')'),
      (8, options.check_source, case when options.check_source then rag._readable_in_source() end)
    ) as f (place, is_asked, sql)
    where f.is_asked);
end
$plpgsql$;
comment on function rag._search_filter(rag._search_options, tsquery) is
  'the conditions on a chunk c, beginning with and; $1 are the options, $2 is the query that its text must match; empty without a filter';

create or replace function rag._estimated_rows(from_sql text, options rag._search_options, condition tsquery) returns float
  -- It writes nothing, but must be volatile: the server does not allow explain in a stable function.
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _plan json;
begin
  execute 'explain (format json) select from ' || from_sql into _plan using options, condition;
  return (_plan #>> '{0,Plan,Plan Rows}')::float;
end
$plpgsql$;
comment on function rag._estimated_rows(text, rag._search_options, tsquery) is 'how many chunks the planner expects to pass a filter';
