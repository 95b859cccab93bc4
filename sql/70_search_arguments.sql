-- Search: checks of its arguments.

create or replace function rag._checked_options(query_text text, options rag._search_options) returns rag._search_options
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _fault record;
begin
  select * into _fault
  from (values
    (query_text is null,
     'null_value_not_allowed', 'query_text is null',
     'Type: select content, page_number from rag.search_documents(''your question'');'),
    (options.match_count is null or options.match_count not between 1 and 10000,
     'invalid_parameter_value', format('match_count is from 1 to 10000, not %s', coalesce(options.match_count::text, 'null')),
     'Leave it out for 10, or type: match_count => 20.'),
    -- Planning and comparing copy the filter several times, in code that cannot be cancelled. So its size is bounded.
    (cardinality(options.document_filter) > 100000,
     'program_limit_exceeded', format('document_filter names %s documents, at most 100000', cardinality(options.document_filter)),
     'Filter by something they have in common (source, tenant_filter, tags_filter, metadata_filter), or join the result with a table'
     ' of them.'),
    -- The stored size, possibly compressed, is tested first because that costs nothing.
    (cardinality(options.tags_filter) > 1000 or pg_column_size(options.tags_filter) > 1048576
     or octet_length(array_to_string(options.tags_filter, '')) > 1048576,
     'program_limit_exceeded', format('tags_filter has more than 1000 tags, or 1 MB: %s tags', cardinality(options.tags_filter)),
     'Give these documents one more tag in common, and filter by that one.'),
    (pg_column_size(options.metadata_filter) > 1048576 or octet_length(options.metadata_filter::text) > 1048576,
     'program_limit_exceeded', 'metadata_filter has more than 1 MB',
     'Name only the fields that matter: metadata_filter => ''{"department": "sales"}''.'),
    (options.semantic_weight not between 0 and 1,
     'invalid_parameter_value', format('semantic_weight is from 0 to 1, not %s', options.semantic_weight),
     '0 ranks by words alone, 1 by meaning alone; leave it out for a weight chosen for each question.'),
    (options.mode is null or options.mode not in ('hybrid', 'semantic', 'text'),
     'invalid_parameter_value', format('there is no mode %s', coalesce(quote_ident(options.mode), 'null')),
     'mode is ''hybrid'' (meaning and words), ''semantic'' (meaning alone) or ''text'' (words alone).'),
    (options.fusion is null or options.fusion not in ('weighted', 'rrf'),
     'invalid_parameter_value', format('there is no fusion %s', coalesce(quote_ident(options.fusion), 'null')),
     'fusion is ''weighted'' (each score divided by its best) or ''rrf'' (reciprocal rank fusion).'),
    (options.min_score = 'NaN',
     'invalid_parameter_value', 'min_score is not a number',
     'It is compared with hybrid_score, which is at most 1: min_score => 0.5.'),
    (options.max_per_document < 1,
     'invalid_parameter_value', format('max_per_document is at least 1, not %s', options.max_per_document),
     'Leave it out to get any number of passages of a document.'),
    (options.tags_match is null or options.tags_match not in ('any', 'all'),
     'invalid_parameter_value', format('there is no tags_match %s', coalesce(quote_ident(options.tags_match), 'null')),
     'tags_match is ''any'' (one of tags_filter is enough) or ''all''.'),
    (jsonb_typeof(options.metadata_filter) <> 'object',
     'invalid_parameter_value', format('metadata_filter is a JSON object, not of type %s', jsonb_typeof(options.metadata_filter)),
     'A document passes if its metadata contain the object: metadata_filter => ''{"department": "sales"}''.'),
    (options.changed_after >= options.changed_before,
     'invalid_parameter_value',
     format('changed_after (%s) is not before changed_before (%s)', options.changed_after, options.changed_before),
     'changed_after is the earlier bound and is included; changed_before is the later one and is excluded.'),
    (options.context_chunks is null or options.context_chunks not between 0 and 100,
     'invalid_parameter_value', format('context_chunks is from 0 to 100, not %s', coalesce(options.context_chunks::text, 'null')),
     'context_chunks is the number of passages before and after each hit that are put into the column context.'),
    (options.language !~ '^\s*[[:alpha:]]{2,40}([-_][[:alnum:]]{1,8})*\s*$',
     'invalid_parameter_value', format('%s is not a language', quote_literal(left(options.language, 40))),
     'Type a code such as ''en'' or ''en-US'', or a value of the source''s language column.'),
    (options.source is not null and not exists (select from rag.sources s where s.name = options.source),
     'undefined_object', format('there is no source "%s"', options.source),
     'Sources are listed by: select name, relation from rag.sources;'),
    (options.rerank is not null and not exists (select from rag.models m where m.name = options.rerank and m.kind = 'reranker'),
     'undefined_object', format('there is no reranker "%s"', options.rerank),
     'Rerankers are listed by: select name from rag.models where kind = ''reranker'';')
  ) as v (is_fault, condition, message, hint)
  where v.is_fault
  limit 1;
  if found then
    raise exception '%', _fault.message using errcode = _fault.condition, hint = _fault.hint;
  end if;
  options.language := case when options.language is not null then rag._language_code(options.language) end;
  -- With a weight of 0 or 1 only one leg counts, so the other leg need not search.
  options.mode := case when options.mode <> 'hybrid' then options.mode
                       when options.semantic_weight = 0 then 'text'
                       when options.semantic_weight = 1 then 'semantic'
                       else 'hybrid' end;
  return options;
end
$plpgsql$;
comment on function rag._checked_options(text, rag._search_options) is
  'the checked and normalized arguments of a search; raises 22004, 22023, 42704 or 54000 for invalid ones';

create or replace function rag._checked_embedding(query_embedding vector, options rag._search_options) returns vector
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _dimension integer;
  _given     integer;
  _length    float;
begin
  if query_embedding is null then
    raise exception 'query_embedding is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'To have the text embedded by the server, leave query_embedding out: '
                      'select content from rag.search_documents(''your question'');';
  end if;
  select m.dimension into _dimension from rag.models m where m.name = (rag._pipeline(coalesce(options.pipeline, 'active'))).model;
  execute format('select %1$I.vector_dims($1), %1$I.vector_norm($1)', rag._vector_schema()) into _given, _length using query_embedding;
  if _given <> _dimension then
    raise exception 'query_embedding has % dimensions, the model of the pipeline has %', _given, _dimension
      using errcode = 'invalid_parameter_value',
            detail  = 'A question can only be compared with vectors of the same model.',
            hint    = 'Make it with rag.embed(''your question''), or leave it out to have the text embedded by the server.';
  end if;
  -- The index stores half-precision numbers. Lengths outside this range would become zero or infinite there.
  if _length not between 0.001 and 65504 then
    raise exception 'query_embedding has a length of %; it must be from 0.001 to 65504', _length
      using errcode = 'invalid_parameter_value',
            detail  = case _length when 0 then 'A vector of zeros has no direction, so nothing can be compared with it.'
                                   else 'It cannot be compared in half precision.' end,
            hint    = format('Divide it by its length: select %1$I.l2_normalize(…); or leave it out: the server then embeds the text.',
                             rag._vector_schema());
  end if;
  return query_embedding;
end
$plpgsql$;
comment on function rag._checked_embedding(vector, rag._search_options) is
  'the checked vector; raises 22004 for null, 22023 if its dimension is not that of the pipeline''s model or its length cannot be'
  ' compared';

create or replace function rag._question_embedding(query_text text, mode text, model text) returns vector
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if mode = 'text' or query_text !~ '\S' or model is null then
    return null;
  end if;
  return rag._embed_query(query_text, model);
exception
  when others then
    if mode = 'semantic' then
      raise;
    end if;
    raise notice 'searching by text alone: model "%" cannot be used', model
      using detail = sqlerrm, hint = 'An administrator sees the full error by: select rag.embed(''test'');';
    return null;
end
$plpgsql$;
comment on function rag._question_embedding(text, text, text) is
  'embedding of a parsed question''s text; null if the mode needs none, and null with a notice if the model cannot be used and the mode can'
  ' do with words';
