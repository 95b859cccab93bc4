-- Search: two legs, every candidate scored exactly in both, one fused ranking.

create or replace function rag._active_pipeline() returns rag.pipelines
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select p from rag.pipelines p where p.state = 'active' $sql$;
comment on function rag._active_pipeline() is 'the pipeline that searches use';

create or replace function rag._searched_pipeline(name text) returns rag.pipelines
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
begin
  if _searched_pipeline.name is null then
    return rag._active_pipeline();
  end if;
  select * into _pipeline from rag.pipelines p where p.name = _searched_pipeline.name;
  if not found then
    raise exception 'there is no pipeline "%"', _searched_pipeline.name
      using errcode = 'undefined_object',
            hint    = 'Pipelines are listed by: select name, state from rag.pipelines; left out, the active one is searched.';
  end if;
  return _pipeline;
end
$plpgsql$;
comment on function rag._searched_pipeline(text) is 'the pipeline of that name, the active one for null; raises 42704 for an unknown name';

------------------------------------------------------------------------------------------------
-- Arguments
------------------------------------------------------------------------------------------------

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
    -- What a filter names is copied, planned with and compared a few times over, in steps that heed no cancel.
    (cardinality(options.document_filter) > 100000,
     'program_limit_exceeded', format('document_filter names %s documents, at most 100000', cardinality(options.document_filter)),
     'Filter by what they have in common (source, tenant_filter, tags_filter, metadata_filter), or join the result with a table of them.'),
    -- The size first as it lies there, which may be compressed, as that costs nothing.
    (cardinality(options.tags_filter) > 1000 or pg_column_size(options.tags_filter) > 1048576
     or octet_length(array_to_string(options.tags_filter, '')) > 1048576,
     'program_limit_exceeded', format('tags_filter has more than 1000 tags, or 1 MB: %s tags', cardinality(options.tags_filter)),
     'Give what has any of many tags one of its own, and filter by that.'),
    (pg_column_size(options.metadata_filter) > 1048576 or octet_length(options.metadata_filter::text) > 1048576,
     'program_limit_exceeded', 'metadata_filter has more than 1 MB',
     'It is contained in the metadata of what is found: name only what matters, as in metadata_filter => ''{"department": "sales"}''.'),
    (options.semantic_weight not between 0 and 1,
     'invalid_parameter_value', format('semantic_weight is from 0 to 1, not %s', options.semantic_weight),
     '0 is text alone, 1 meaning alone, 0.7 what the earlier worker had; leave it out for an automatic weight.'),
    (options.mode is null or options.mode not in ('hybrid', 'semantic', 'text'),
     'invalid_parameter_value', format('there is no mode %s', coalesce(quote_ident(options.mode), 'null')),
     'mode is ''hybrid'' (both legs), ''semantic'' (meaning alone) or ''text'' (words alone).'),
    (options.fusion is null or options.fusion not in ('weighted', 'rrf'),
     'invalid_parameter_value', format('there is no fusion %s', coalesce(quote_ident(options.fusion), 'null')),
     'fusion is ''weighted'' (each score divided by its best) or ''rrf'' (reciprocal rank fusion).'),
    (options.min_score = 'NaN',
     'invalid_parameter_value', 'min_score is no number',
     'It is compared with hybrid_score, which is at most 1: min_score => 0.5.'),
    (options.max_per_document < 1,
     'invalid_parameter_value', format('max_per_document is at least 1, not %s', options.max_per_document),
     'Leave it out for as many passages of a document as rank.'),
    (options.tags_match is null or options.tags_match not in ('any', 'all'),
     'invalid_parameter_value', format('there is no tags_match %s', coalesce(quote_ident(options.tags_match), 'null')),
     'tags_match is ''any'' (one of tags_filter is enough) or ''all''.'),
    (jsonb_typeof(options.metadata_filter) <> 'object',
     'invalid_parameter_value', format('metadata_filter is a JSON object, not of type %s', jsonb_typeof(options.metadata_filter)),
     'It is contained in the metadata of what is found: metadata_filter => ''{"department": "sales"}''.'),
    (options.changed_after >= options.changed_before,
     'invalid_parameter_value', format('changed_after (%s) is not before changed_before (%s)', options.changed_after, options.changed_before),
     'changed_after is the earlier bound and included, changed_before the later one and excluded.'),
    (options.context_chunks is null or options.context_chunks not between 0 and 100,
     'invalid_parameter_value', format('context_chunks is from 0 to 100, not %s', coalesce(options.context_chunks::text, 'null')),
     'It is how many passages before and after each hit are put into context.'),
    (options.language !~ '^\s*[[:alpha:]]{2,40}([-_][[:alnum:]]{1,8})*\s*$',
     'invalid_parameter_value', format('%s is not a language', quote_literal(left(options.language, 40))),
     'A language is a code such as ''en'' or ''en-US'', or what the language column of the source says.'),
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
  -- The ends of the weight's range are modes: what counts for nothing need not be looked for.
  options.mode := case when options.mode <> 'hybrid' then options.mode
                       when options.semantic_weight = 0 then 'text'
                       when options.semantic_weight = 1 then 'semantic'
                       else 'hybrid' end;
  return options;
end
$plpgsql$;
comment on function rag._checked_options(text, rag._search_options) is 'the arguments of a search in their one form; raises 22004, 22023, 42704 or 54000 for those it cannot have';

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
            hint    = 'Leave it out and the text is embedded here: select content from rag.search_documents(''your question'');';
  end if;
  select m.dimension into _dimension from rag.models m where m.name = (rag._searched_pipeline(options.pipeline)).model;
  execute format('select %1$I.vector_dims($1), %1$I.vector_norm($1)', rag._vector_schema()) into _given, _length using query_embedding;
  if _given <> _dimension then
    raise exception 'query_embedding has % dimensions, the pipeline searched %', _given, _dimension
      using errcode = 'invalid_parameter_value',
            detail  = 'A query is compared with vectors of the same model only.',
            hint    = 'Make it with rag.embed(''your question''), or leave it out and the text is embedded here.';
  end if;
  -- What half precision, in which the index has its vectors, does not make nought or infinite.
  if _length not between 0.001 and 65504 then
    raise exception 'query_embedding has a length of %, not of 0.001 to 65504', _length
      using errcode = 'invalid_parameter_value',
            detail  = case _length when 0 then 'A vector of noughts points nowhere, so nothing is near it.' else 'In half precision it cannot be compared.' end,
            hint    = format('Divide it by its length: select %1$I.l2_normalize(…); or leave it out and the text is embedded here.', rag._vector_schema());
  end if;
  return query_embedding;
end
$plpgsql$;
comment on function rag._checked_embedding(vector, rag._search_options) is 'the vector; raises 22004 for null, 22023 for another dimension than that of the pipeline''s model and for a length that cannot be compared';

create or replace function rag._question_embedding(query_text text, mode text, model text) returns vector
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  -- As rag._search() cuts it.
  _plain constant text := (rag._parse_query(left(query_text, 10000))).plain;
begin
  if mode = 'text' or _plain !~ '\S' or model is null then
    return null;
  end if;
  return rag._embed_query(_plain, model);
exception
  when others then
    if mode = 'semantic' then
      raise;
    end if;
    raise notice 'searching by text alone: model "%" cannot be used', model
      using detail = sqlerrm, hint = 'Whoever runs the server can see more by: select rag.embed(''test'');';
    return null;
end
$plpgsql$;
comment on function rag._question_embedding(text, text, text) is 'embedding of a question as far as the mode needs one; null, with a notice, where the model cannot be used and words are there to go by';

------------------------------------------------------------------------------------------------
-- Filters
------------------------------------------------------------------------------------------------

create or replace function rag._readable_in_source() returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Asked of the source table itself, as the caller: its privileges and its row security decide.
  select coalesce(string_agg(
           format('c.source_id = %s and exists (select from %s s where s.%I = %s)', s.source_id, s.relation, s.key_column,
                  case when s.assigns_ids
                       then format('(select d.source_key from rag.documents d where d.source_id = c.source_id and d.document_id = c.document_id)::%s',
                                   rag._column_type(s.relation, s.key_column))
                       else 'c.document_id' end), ' or '), 'false')
  from rag.sources s
  join pg_class r on r.oid = s.relation
  where has_schema_privilege(r.relnamespace, 'usage')
    and (has_table_privilege(s.relation, 'select') or has_column_privilege(s.relation, s.key_column, 'select'))
$sql$;
comment on function rag._readable_in_source() is 'condition on a chunk c: the caller can read its row in the source';

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
      (3, options.source is not null, format('c.source_id = %s', (select s.source_id from rag.sources s where s.name = options.source))),
      (4, options.tags_filter is not null, case options.tags_match when 'any' then 'c.tags && ($1).tags_filter' else 'c.tags @> ($1).tags_filter' end),
      (5, options.language is not null, 'c.language = ($1).language'),
      -- ~~ and a language: whose passages are let through, see rag._text_condition().
      (6, condition is not null, case when strpos(condition::text, '''~~') = 0 then 'c.content_tsv operator(rag.@@) $2'
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
comment on function rag._search_filter(rag._search_options, tsquery) is 'conditions on a chunk c, where $1 are the options and $2 is what its text must match; empty where nothing is filtered';

create or replace function rag._estimated_rows(from_sql text, options rag._search_options, condition tsquery) returns float
  -- Volatile though it writes nothing: the server allows no explain in a stable function.
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
comment on function rag._estimated_rows(text, rag._search_options, tsquery) is 'how many chunks the planner expects behind a filter';

------------------------------------------------------------------------------------------------
-- Candidates
------------------------------------------------------------------------------------------------

create or replace function rag._query_weights(lexemes rag._query_lexeme[]) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- A thousand words say what is asked for, and a sparsevec has an end.
  return (
    select '{' || string_agg(w.index || ':' || w.weight, ',' order by w.index) || '}/268435456'
    from (select rag._lexeme_index(l.lexeme, l.text_search_config) as index, max(l.occurrences * l.idf)::real as weight
          from unnest(lexemes) l
          where l.chunks > 0 group by 1 order by 2 desc limit 1000) w);
end
$plpgsql$;
comment on function rag._query_weights(rag._query_lexeme[]) is 'idf of each lexeme of a query as a sparsevec''s text form; null where there is none';

create or replace function rag._lexeme_query(lexemes text[]) returns tsquery
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (select string_agg('''' || replace(replace(l, '\', '\\'), '''', '''''') || '''', '|') from unnest(lexemes) l);
end
$plpgsql$;
comment on function rag._lexeme_query(text[]) is 'any of the lexemes';

create or replace function rag._rarest_lexemes(lexemes rag._query_lexeme[], bound float) returns text[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (
    select array_agg(r.lexeme)
    from (select l.lexeme, sum(sum(l.chunks)) over w as total, row_number() over w as place
          from unnest(lexemes) l
          group by l.lexeme
          window w as (order by sum(l.chunks), l.lexeme)) r
    where r.total <= bound or r.place = 1);
end
$plpgsql$;
comment on function rag._rarest_lexemes(rag._query_lexeme[], float) is 'the rarest lexemes of a query until their chunks add up to the bound: a chunk with only the others is hardly among the best (the idea of MaxScore, Turtle and Flood 1995)';

create or replace function rag._oversampling(pipeline rag.pipelines) returns integer
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select case when pipeline.quantization = 'binary' then coalesce((pipeline.index_options ->> 'oversampling')::integer, 8) else 1 end
$sql$;
comment on function rag._oversampling(rag.pipelines) is 'how many times as many chunks the vector index is asked for as are wanted';

create or replace function rag._has_vector_index(pipeline rag.pipelines) returns boolean
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select pipeline.index_method <> 'none' and not pipeline.index_deferred $sql$;
comment on function rag._has_vector_index(rag.pipelines) is 'false for index_method none and while the index is deferred: then comparing all is faster, and exact';

create or replace function rag._dense_candidates(
    from_sql text, query_embedding vector, options rag._search_options, condition tsquery, pipeline rag.pipelines,
    wanted integer, by_index boolean)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _vector constant name := rag._vector_schema();
  _sql    text := 'select array(select c.chunk_id from %1$s order by %2$s limit %3$s)';
  _order  text;
  _found  bigint[];
begin
  if by_index then
    _order := format('%s operator(%I.%s) %s', rag._indexed_vector(pipeline, 'c.embedding'), _vector,
                     case pipeline.quantization when 'binary' then '<~>' else '<=>' end, rag._indexed_vector(pipeline, '$3'));
    if pipeline.quantization = 'binary' then
      -- One bit a dimension finds the neighbourhood; who is nearest in it the whole vectors say.
      _sql := 'select array(select c.chunk_id from (select c.chunk_id, c.embedding from %1$s order by %2$s limit %5$s) c
                            order by c.embedding operator(%4$I.<=>) $3 limit %3$s)';
    end if;
  else
    -- Zero added, the order is no longer that of the index, and all that pass the filter are compared.
    _order := format('(c.embedding operator(%I.<=>) $3) + 0', _vector);
  end if;
  execute format(_sql, from_sql, _order, wanted, _vector, wanted * rag._oversampling(pipeline))
  into _found using options, condition, query_embedding;
  return _found;
end
$plpgsql$;
comment on function rag._dense_candidates(text, vector, rag._search_options, tsquery, rag.pipelines, integer, boolean) is 'the nearest chunks, by the vector index or by comparing all';

create or replace function rag._text_candidates(
    from_sql text, weights text, lexemes text[], options rag._search_options, condition tsquery, wanted integer)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- The planner counts a comparison of lexemes as cheap, but each has to be fetched and unpacked: 80
  -- times the time of the index at 5,000 chunks.
  set enable_seqscan = 'off'
as $plpgsql$
declare
  _found bigint[];
begin
  -- By rag._matches(), as the index is, which row security would not let the core's @@ use.
  execute format('select array(select c.chunk_id from %s and c.content_tsv operator(rag.@@) $4
                               order by c.content_bm25 operator(%I.<#>) $3::%2$I.sparsevec limit %3$s)',
                 from_sql, rag._vector_schema(), wanted)
  into _found using options, condition, weights, rag._lexeme_query(lexemes);
  return _found;
end
$plpgsql$;
comment on function rag._text_candidates(text, text, text[], rag._search_options, tsquery, integer) is 'the chunks with any of the lexemes that have the best BM25 by all of them';

create or replace function rag._exact_candidates(
    from_sql text, query_embedding vector, weights text, options rag._search_options, condition tsquery, wanted integer, most bigint)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _found bigint[];
begin
  execute format($sql$
    with matching as materialized (
      select c.chunk_id, c.embedding operator(%2$I.<=>) $3 as distance, c.content_bm25 operator(%2$I.<#>) $4::%2$I.sparsevec as rank
      from %1$s limit %4$s + 1
    )
    select array(select m.chunk_id from matching m where m.distance is not null order by m.distance limit %3$s)
        || array(select m.chunk_id from matching m where m.rank < 0 order by m.rank limit %3$s)
    where (select count(*) from matching) <= %4$s
    $sql$, from_sql, rag._vector_schema(), wanted, most)
  into _found using options, condition, query_embedding, weights;
  return _found;
end
$plpgsql$;
comment on function rag._exact_candidates(text, vector, text, rag._search_options, tsquery, integer, bigint) is 'the best chunks of both legs among all that pass the filter; null where these are more than most';

create or replace function rag._estimated_chunks(pipeline rag.pipelines) returns float
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select greatest(c.reltuples, 1)::float from pg_class c where c.oid = to_regclass(format('rag.%I', rag._partition(pipeline.pipeline_id)))
$sql$;
comment on function rag._estimated_chunks(rag.pipelines) is 'how many chunks a pipeline has, as of the last analyze; at least 1';

create or replace function rag._candidates(
    query_embedding vector, lexemes rag._query_lexeme[], weights text, options rag._search_options, condition tsquery,
    pipeline rag.pipelines, wanted integer)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _filter     constant text  := rag._search_filter(options, condition);
  _from       constant text  := format('rag.document_chunks c where c.pipeline_id = %s%s', pipeline.pipeline_id, _filter);
  _chunks     constant float := rag._estimated_chunks(pipeline);
  _by_index   constant boolean := wanted <= 10000 and rag._has_vector_index(pipeline);
  -- Chunks whose BM25 is computed: 96 % of the exact top 10 and more, see docs/search.md.
  _text_bound float;
  _needed     integer;
  _matching   float;
  _few        bigint;
  _dense      bigint[] := '{}';
  _lexical    bigint[] := '{}';
  _found      bigint[];
begin
  _text_bound := least(greatest(10 * sqrt(_chunks), 3000), 30000);
  _matching := _chunks;
  if _filter <> '' or row_security_active('rag.document_chunks') then
    _matching := least(rag._estimated_rows(_from, options, condition), _chunks);
    -- Where comparing all that match costs as much as walking the index until enough match, see
    -- docs/search.md. An estimate can be wrong: four times as many are looked at, and no more.
    _few := greatest(3000, sqrt(1200 * _chunks));
    if _matching <= _few then
      _found := rag._exact_candidates(_from, query_embedding, weights, options, condition, wanted, 4 * _few);
      if _found is not null then
        return _found;
      end if;
    end if;
  end if;

  if query_embedding is not null then
    -- The index gives up at hnsw.max_scan_tuples; a filter it is blind to can hide the rest.
    _dense := rag._dense_candidates(_from, query_embedding, options, condition, pipeline, wanted, _by_index);
    if cardinality(_dense) < wanted and _by_index then
      _dense := rag._dense_candidates(_from, query_embedding, options, condition, pipeline, wanted, false);
    end if;
  end if;
  if weights is not null and options.mode <> 'semantic' then
    _text_bound := least(_text_bound * _chunks / _matching, 20 * _text_bound);
    -- Alone, this leg has to fill the page, if it takes the common words, the rarer of them first.
    _needed := case when query_embedding is not null then 0 when options.max_per_document is null then options.match_count else wanted end;
    loop
      _lexical := rag._text_candidates(_from, weights, rag._rarest_lexemes(lexemes, _text_bound), options, condition, wanted);
      exit when cardinality(_lexical) >= _needed or _text_bound = 'infinity';
      _text_bound := case when _text_bound < _chunks then 10 * _text_bound else 'infinity' end;
    end loop;
  end if;
  return _dense || _lexical;
end
$plpgsql$;
comment on function rag._candidates(vector, rag._query_lexeme[], text, rag._search_options, tsquery, rag.pipelines, integer) is 'chunks worth scoring: up to as many of each leg as are wanted, that many wherever they exist';

------------------------------------------------------------------------------------------------
-- Fusion
------------------------------------------------------------------------------------------------

create or replace function rag._automatic_weight(query_embedding vector, best_similarity float, pipeline_id integer) returns float
  language plpgsql stable
  -- SECURITY DEFINER: the sample of vectors is of all tenants; only one figure of it is given out.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _mean      float;
  _deviation float;
begin
  execute format('select avg(1 - s.distance), stddev_samp(1 - s.distance)
                  from (select b.embedding operator(%I.<=>) $1 as distance from rag._background b where b.pipeline_id = $2) s',
                 rag._vector_schema())
  into _mean, _deviation using query_embedding, _automatic_weight.pipeline_id;
  -- From 0.4 where the best passage lies 2.5 standard deviations above unrelated ones to 0.8 at 8:
  -- the form that did best on 16 collections, see docs/search.md. Nothing to compare with: even.
  return coalesce(0.4 + 0.4 * least(greatest(((best_similarity - _mean) / nullif(_deviation, 0) - 2.5) / 5.5, 0), 1), 0.5);
end
$plpgsql$;
comment on function rag._automatic_weight(vector, float, integer) is 'weight of the dense leg, 0.4 to 0.8, by how sharply it separates its best hit from the background: a model that does not know the language does not';

create or replace function rag._asks_for_code(query_text text, lexemes rag._query_lexeme[], pipeline rag.pipelines) returns boolean
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _codes text[];
  _rest  text := lower(query_text);
  _code  text;
begin
  if query_text !~ '\d' then
    return false;
  end if;
  -- Not a word of letters alone, as in 10.0.0.1 or v2.3.1. In scripts without spaces a word can be a sentence.
  if octet_length(query_text) = length(query_text) and query_text !~ '(^|\s)[^\d\s]*[[:alpha:]][^\d\s]*(\s|$)' then
    return true;
  end if;
  -- Or little beside a code that is somewhere as a whole. One of fewer digits is a word among others: of
  -- COVID-19 and IL-6 vectors know a lot.
  _codes := array(select c from unnest(rag._codes(query_text)) c where c ~ '(\d\D*){4}');
  foreach _code in array _codes loop
    _rest := replace(_rest, _code, ' ');
  end loop;
  return cardinality(_codes) > 0
     and length(to_tsvector(pipeline.text_search_config::regconfig, _rest)) <= 2
     and exists (select from unnest(lexemes) l where l.chunks > 0 and l.lexeme = any (_codes));
end
$plpgsql$;
comment on function rag._asks_for_code(text, rag._query_lexeme[], rag.pipelines) is 'the question is for a number or code, of which vectors know little: all of its words have digits, or it is a code of four digits or more that is somewhere in the corpus, with no more than two words beside it';

create or replace function rag._fuse(
    candidates bigint[], query_embedding vector, weights text, options rag._search_options, pipeline rag.pipelines, wanted integer,
    out hits rag._search_hit[], out most_unseen float)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  execute format($sql$
    with candidate as materialized (
      -- A stored vector of noughts is compared with nothing.
      select c.chunk_id, c.source_id, c.document_id, c.chunk_index, nullif(1 - (c.embedding operator(%1$I.<=>) $2), 'NaN') as similarity,
             coalesce(-(c.content_bm25 operator(%1$I.<#>) $3::%1$I.sparsevec), 0) as bm25
      from rag.document_chunks c
      where c.pipeline_id = %2$s and c.chunk_id = any ($1)
    ),
    -- What a passage is worth depends on what it stands among, too: see docs/search.md. Lateral, so
    -- that each candidate's neighbours come by index.
    scored as materialized (
      select c.*, coalesce(0.4 * c.similarity + 0.6 * a.similarity, c.similarity) as similarity_in_context,
             coalesce(0.7 * c.bm25 + 0.3 * a.bm25, c.bm25) as bm25_in_context
      from candidate c
      left join lateral (
        select nullif(1 - (%1$I.sum(n.embedding) operator(%1$I.<=>) $2), 'NaN') as similarity,
               avg(coalesce(-(n.content_bm25 operator(%1$I.<#>) $3::%1$I.sparsevec), 0)) as bm25
        from rag.document_chunks n
        where n.pipeline_id = %2$s and n.source_id = c.source_id and n.document_id = c.document_id
          and n.chunk_index between c.chunk_index - 3 and c.chunk_index + 3
      ) a on ($4).mode = 'hybrid' and ($4).fusion = 'weighted' and $2 is not null
    ),
    placed as (
      select s.*, case when s.similarity is not null then rank() over (order by s.similarity desc) end as semantic_place,
             case when s.bm25 > 0 then rank() over (order by s.bm25 desc) end as text_place
      from scored s
    ),
    best as (
      select max(s.similarity) as similarity, max(s.bm25) as bm25,
             max(s.similarity_in_context) as similarity_in_context, max(s.bm25_in_context) as bm25_in_context
      from scored s
    ),
    -- Materialized: its one row costs a pass over the sample, and would be made anew for each candidate.
    weight as materialized (
      select b.similarity_in_context, b.bm25_in_context,
             case when b.similarity is null then 0 when coalesce(b.bm25, 0) = 0 or ($4).mode = 'semantic' then 1
                  when ($4).fusion = 'rrf' then coalesce(($4).semantic_weight, 0.5)
                  else coalesce(($4).semantic_weight, rag._automatic_weight($2, b.similarity, %2$s)) end as semantic
      from best b
    ),
    fused as (
      select p.*,
             case ($4).fusion
               -- Cormack, Clarke and Buettcher, 2009, with their constant; the first place is worth 1.
               when 'rrf' then 61 * (w.semantic * coalesce(1.0 / (60 + p.semantic_place), 0)
                                     + (1 - w.semantic) * coalesce(1.0 / (60 + p.text_place), 0))
               else w.semantic * greatest(coalesce(p.similarity_in_context / nullif(greatest(w.similarity_in_context, 0), 0), 0), 0)
                    + (1 - w.semantic) * coalesce(p.bm25_in_context / nullif(w.bm25_in_context, 0), 0)
             end as score
      from placed p cross join weight w
    ),
    limited as (
      select f.*, row_number() over (partition by f.source_id, f.document_id
                                     order by f.score desc, f.similarity desc nulls last, f.chunk_id) as place_in_document
      from fused f
      where ($4).min_score is null or f.score >= ($4).min_score
    ),
    -- What is no candidate stands below the last that was wanted of each leg.
    unseen as (
      select case ($4).fusion
               when 'rrf' then 61.0 / (61 + $5)
               else w.semantic * greatest(coalesce(min(p.similarity) filter (where p.semantic_place <= $5) / nullif(greatest(w.similarity_in_context, 0), 0), 0), 0)
                    + (1 - w.semantic) * coalesce(case when count(p.text_place) >= $5 then min(p.bm25) filter (where p.text_place <= $5) end / nullif(w.bm25_in_context, 0), 0)
             end as score
      from placed p cross join weight w
      where ($4).min_score is not null
      group by w.semantic, w.similarity_in_context, w.bm25_in_context
    )
    select array(
      select row(l.chunk_id, l.similarity, l.bm25, l.semantic_place, l.text_place, l.score, null)::rag._search_hit
      from limited l
      where ($4).max_per_document is null or l.place_in_document <= ($4).max_per_document
      order by l.score desc, l.similarity desc nulls last, l.chunk_id
      limit ($4).match_count), (select u.score from unseen u)
    $sql$, rag._vector_schema(), pipeline.pipeline_id)
  into hits, most_unseen using candidates, query_embedding, weights, options, wanted;
end
$plpgsql$;
comment on function rag._fuse(bigint[], vector, text, rag._search_options, rag.pipelines, integer) is 'the candidates, scored exactly in both legs, by their fused score; and, where there is a min_score, what a passage that is none of these could score at most, if so many of each leg were wanted';

create or replace function rag._set_index_effort(pipeline rag.pipelines, wanted integer) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The more passages, the more lie nearly as near as the nearest: from 100,000 on it looks further, a
  -- thousandth of them, which costs less than it finds: see docs/search.md.
  select set_config('hnsw.ef_search', least(greatest(wanted * rag._oversampling(pipeline),
                    coalesce((pipeline.index_options ->> 'ef_search')::integer, (rag._estimated_chunks(pipeline) / 1000)::integer)), 1000)::text, true),
         set_config('ivfflat.probes', coalesce(pipeline.index_options ->> 'probes',
                    ceil(sqrt(coalesce((pipeline.index_options ->> 'lists')::integer, 100)))::text), true);
$sql$;
comment on function rag._set_index_effort(rag.pipelines, integer) is 'how far the vector index looks, until the end of a caller that sets these itself';

create or replace function rag._search_hits(
    query_embedding vector, query_text text, options rag._search_options, condition tsquery, pipeline rag.pipelines)
  returns rag._search_hit[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- Local to this function. A filtered scan of the vector index goes on until it has enough rows.
  set hnsw.iterative_scan = 'strict_order'
  set hnsw.max_scan_tuples = '100000'
  set hnsw.ef_search = '100'
  set ivfflat.iterative_scan = 'relaxed_order'
  set ivfflat.probes = '10'
  -- Compiling takes longer than the statements.
  set jit = 'off'
as $plpgsql$
declare
  -- Of each leg. More than asked for, as the best of the fused ranking may stand lower in each.
  _wanted     integer := greatest(100, 2 * options.match_count);
  _lexemes    constant rag._query_lexeme[] := case when query_text ~ '\S' then rag._query_lexemes(query_text, pipeline) end;
  _weights    constant text := rag._query_weights(_lexemes);
  _candidates bigint[];
  _hits       rag._search_hit[];
  _unseen     float;
begin
  if options.mode = 'hybrid' and options.semantic_weight is null and rag._asks_for_code(query_text, _lexemes, pipeline) then
    options.semantic_weight := 0.2;
  end if;
  loop
    perform rag._set_index_effort(pipeline, _wanted);
    _candidates := rag._candidates(query_embedding, _lexemes, _weights, options, condition, pipeline, _wanted);
    select f.hits, f.most_unseen into _hits, _unseen
    from rag._fuse(_candidates, query_embedding, _weights, options, pipeline, _wanted) f;
    -- One long document can be all of the candidates: then more are needed, as long as there are more that may score enough.
    exit when options.max_per_document is null or cardinality(_hits) >= options.match_count or cardinality(_candidates) < _wanted
           or _unseen < options.min_score;
    _wanted := 8 * _wanted;
  end loop;
  return _hits;
end
$plpgsql$;
comment on function rag._search_hits(vector, text, rag._search_options, tsquery, rag.pipelines) is 'what a search finds, best first';

------------------------------------------------------------------------------------------------
-- Reranking
------------------------------------------------------------------------------------------------

create or replace function rag._rerank(query_text text, passages text[], model text) returns float[]
  language plpython3u stable strict parallel restricted
as $python$
@boot@
from ragstone.server.functions import rerank
return rerank(plpy, query_text, passages, model)
$python$;
comment on function rag._rerank(text, text[], text) is 'score of each passage for a question, by a reranker';

create or replace function rag._rerank_scores(query_text text, passages text[], model text) returns float[]
  -- Not for a parallel plan, in which no exception can be handled.
  language plpgsql stable strict
  -- SECURITY DEFINER: a searching role calls Python only with the name of a reranker that exists.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  perform from rag.models m where m.name = _rerank_scores.model and m.kind = 'reranker';
  if not found then
    raise exception 'there is no reranker "%"', _rerank_scores.model using errcode = 'undefined_object';
  end if;
  return rag._rerank(query_text, passages, model);
exception
  when external_routine_exception then
    raise exception 'reranker "%" cannot be used', model
      using errcode = 'external_routine_exception',
            detail  = regexp_replace(sqlerrm, '^[A-Za-z_.]+: ', ''),
            hint    = 'Its folder, location in rag.models, must hold model.onnx and tokenizer.json, which the server''s account can read, and the model give one score a passage. To search without it, leave rerank out.';
end
$plpgsql$;
comment on function rag._rerank_scores(text, text[], text) is 'rag._rerank() for roles that may search; raises 42704 for a model that is no reranker, 38000 for one that cannot be used';

create or replace function rag._reranked(hits rag._search_hit[], query_text text, options rag._search_options, pipeline rag.pipelines)
  returns rag._search_hit[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with hit as materialized (
    select h.*, c.content
    from unnest(hits) with ordinality as h (chunk_id, similarity, bm25, semantic_place, text_place, score, rerank_score, place)
    join rag.document_chunks c on c.pipeline_id = pipeline.pipeline_id and c.chunk_id = h.chunk_id
  ),
  score as (
    select u.score, u.position
    from (select array_agg(h.content order by h.place) as contents from hit h) a,
         unnest(rag._rerank_scores(query_text, a.contents, options.rerank)) with ordinality as u (score, position)
  ),
  numbered as (select h.*, row_number() over (order by h.place) as position from hit h)
  select array(
    select row(n.chunk_id, n.similarity, n.bm25, n.semantic_place, n.text_place, n.score, s.score)::rag._search_hit
    from numbered n join score s on s.position = n.position
    order by s.score desc, n.place)
$sql$;
comment on function rag._reranked(rag._search_hit[], text, rag._search_options, rag.pipelines) is 'the hits in the order of a reranker';

------------------------------------------------------------------------------------------------
-- Results
------------------------------------------------------------------------------------------------

create or replace function rag._overlap(before text, after text, most integer) returns integer
  language plpgsql immutable strict
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _end    text    := right(before, most);
  _common text;
  _place  integer := 1;
begin
  -- Text that comes twice is better than text that is missing: what could stand there by chance does
  -- not count, as one word could, or the end of a word that the next begins with.
  loop
    _place := strpos(_end, left(after, 2));
    if _place = 0 or _end = '' then
      return 0;
    end if;
    _common := substr(_end, _place);
    exit when starts_with(after, _common) and length(_common) < least(length(before), length(after))
              and (length(_common) >= 20
                   or btrim(_common) ~ '\s'
                      and right(left(before, -length(_common)), 1) || left(_common, 1) !~ '[[:alnum:]]{2}'
                      and right(_common, 1) || substr(after, length(_common) + 1, 1) !~ '[[:alnum:]]{2}');
    _end := substr(_end, _place + 1);
  end loop;
  return length(_common);
end
$plpgsql$;
comment on function rag._overlap(text, text, integer) is 'how many characters, up to so many, the second text repeats of the end of the first; 0 where that could be chance';

create or replace function rag._context(pipeline rag.pipelines, source_id integer, document_id bigint, chunk_index integer, neighbours integer) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with neighbour as (
    select c.chunk_index, c.content, lag(c.content) over w as before,
           -- Only fixed repeats anything over headings and pages. A token has hardly more than 16 characters.
           case when pipeline.chunk_strategy = 'fixed' or (c.section, c.page_number) is not distinct from (lag(c.section) over w, lag(c.page_number) over w)
                then pipeline.chunk_overlap * case pipeline.chunk_unit when 'tokens' then 16 else 1 end else 0 end as most
    from rag.document_chunks c
    where c.pipeline_id = pipeline.pipeline_id and c.source_id = _context.source_id and c.document_id = _context.document_id
      and c.chunk_index between _context.chunk_index - neighbours and _context.chunk_index + neighbours
    window w as (order by c.chunk_index)
  )
  select string_agg(case when n.before is null then n.content when o.overlap > 0 then substr(n.content, o.overlap + 1) else e'\n' || n.content end,
                    '' order by n.chunk_index)
  from neighbour n cross join lateral rag._overlap(n.before, n.content, n.most) o (overlap)
$sql$;
comment on function rag._context(rag.pipelines, integer, bigint, integer, integer) is 'a chunk with so many before and after it, of the same document, what they share only once';

create or replace function rag._html(content text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select replace(replace(replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;')
$sql$;
comment on function rag._html(text) is 'a text as HTML that shows it';

create or replace function rag._words_to_mark(content text, query_text text, text_search_config text) returns text[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with asked as (
    select l from unnest(tsvector_to_array(rag._analyze(query_text, text_search_config, is_question => true))) l
  ), there as materialized (
    select u.lexeme, u.positions from unnest(rag._analyze(content, text_search_config)) u
  )
  select array(
    select a.l from asked a
    union
    -- What is found without its accents stands there with them.
    select t.lexeme from there t join there f on f.positions && t.positions
    where f.lexeme in (select a.l from asked a where starts_with(a.l, '~')) and not starts_with(t.lexeme, '~'))
$sql$;
comment on function rag._words_to_mark(text, text, text) is 'lexemes of a question, and those of a passage that they find without accents';

create or replace function rag._snippet(content text, query_text text, text_search_config text) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  set client_min_messages = 'warning'
as $plpgsql$
declare
  -- Characters that no text needs: a document must not bring markup of its own into a page.
  _gap     constant text := chr(1);
  _begin   constant text := chr(2);
  _end     constant text := chr(3);
  _words   text[] := rag._words_to_mark(content, query_text, text_search_config);
  _plain   constant text := translate(content, _gap || _begin || _end, '');
  _text    text := _plain;
  _letters text[];
begin
  if octet_length(_text) > length(_text) and getdatabaseencoding() = 'UTF8' then
    _text := normalize(_text, NFC);
    -- Of scripts without spaces the pairs of letters are words here, and what of the question stands together.
    _letters := array(select distinct r[1] from regexp_matches(left(rag._normalized(query_text), 500), '[\u0e00-\u11ff\u1780-\u17ff\u3001-\U0003ffff]{2,}', 'g') r)
             || array(select w from unnest(_words) w where w ~ '^[\u0e00-\u11ff\u1780-\u17ff\u3001-\U0003ffff]' limit 500);
    if cardinality(_letters) > 0 then
      _text := regexp_replace(_text, array_to_string(_letters, '|'), _gap || '\&' || _gap, 'g');
      _words := _words || _letters;
    end if;
  end if;
  -- The parser shall see neither tags nor entities.
  _text := replace(replace(rag._divided(_text, _gap), '<', '<' || _gap), '&', '&' || _gap);
  _text := ts_headline(text_search_config::regconfig, _text, rag._lexeme_query(_words),
    format('StartSel=%s, StopSel=%s, MaxFragments=2, MaxWords=30, MinWords=10, FragmentDelimiter=" … "', _begin, _end));
  _text := regexp_replace(replace(coalesce(_text, left(_plain, 200)), _gap, ''), _end || '([-/_@:.~]*)' || _begin, '\1', 'g');
  return replace(replace(rag._html(_text), _begin, '<mark>'), _end, '</mark>');
end
$plpgsql$;
comment on function rag._snippet(text, text, text) is 'HTML: the parts of a passage where words of the question are, these within <mark>';

create or replace function rag._search_results(hits rag._search_hit[], query_text text, options rag._search_options, pipeline rag.pipelines)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return query
    select h.chunk_id, c.document_id, c.content, h.similarity, h.bm25, h.score, c.page_number, c.chunk_index,
           s.name, d.source_key, d.file_path, coalesce(d.title, d.extracted ->> 'title'), c.section, c.tags, d.metadata,
           c.language, h.semantic_place, h.text_place, h.rerank_score,
           case when options.context_chunks > 0
                then rag._context(pipeline, c.source_id, c.document_id, c.chunk_index, options.context_chunks) end,
           case when options.highlight then rag._snippet(c.content, query_text, c.text_search_config) end
    from unnest(hits) with ordinality as h
         (chunk_id, similarity, bm25, semantic_place, text_place, score, rerank_score, place)
    join rag.document_chunks c on c.pipeline_id = pipeline.pipeline_id and c.chunk_id = h.chunk_id
    join rag.documents d on d.source_id = c.source_id and d.document_id = c.document_id
    join rag.sources s on s.source_id = c.source_id
    order by h.place;
end
$plpgsql$;
comment on function rag._search_results(rag._search_hit[], text, rag._search_options, rag.pipelines) is 'all that is known of the hits, in their order';

create or replace function rag._search(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  -- What the model does not read the words need not be taken from.
  _parsed   constant record := rag._parse_query(left(query_text, 10000));
  _count    constant integer := options.match_count;
  _pipeline rag.pipelines;
  _hits     rag._search_hit[];
begin
  -- Whoever drops a pipeline waits for the lock that this takes, until the search has ended.
  perform from rag.document_chunks where false;
  _pipeline := rag._searched_pipeline(options.pipeline);
  if to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
    -- to_regclass() sees what is now, a query what was when the statement began.
    if exists (select from pg_class c where c.relnamespace = 'rag'::regnamespace and c.relname = rag._partition(_pipeline.pipeline_id)) then
      return query select * from rag._search_again(query_embedding, query_text, options);
    end if;
    return;
  end if;
  -- By the model of the very pipeline that is searched.
  query_embedding := case when options.mode <> 'text'
                          then coalesce(query_embedding, rag._question_embedding(query_text, options.mode, _pipeline.model)) end;
  if options.rerank is not null then
    -- What it may bring up: a cross-encoder reads each with the question, which takes its time.
    options.match_count := greatest(_count, 50);
  end if;
  _hits := rag._search_hits(query_embedding, _parsed.plain, options,
    rag._text_condition(_parsed.required, _parsed.excluded, rag._text_search_configs(_pipeline)), _pipeline);
  if options.rerank is not null and cardinality(_hits) > 0 then
    _hits := (rag._reranked(_hits, _parsed.plain, options, _pipeline))[:_count];
  end if;
  return query select * from rag._search_results(_hits, _parsed.plain, options, _pipeline);
end
$plpgsql$;
comment on function rag._search(vector, text, rag._search_options) is 'the one implementation behind all forms of search; embeds the question where no vector is given';

create or replace function rag._search_again(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.search_result
  -- Volatile though it writes nothing: what it calls sees what is committed now.
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'the pipeline that this transaction sees has been dropped'
      using errcode = 'serialization_failure',
            hint    = 'Begin the transaction again: it will search the pipeline that is active now.';
  end if;
  return query select * from rag._search(query_embedding, query_text, options);
end
$plpgsql$;
comment on function rag._search_again(vector, text, rag._search_options) is 'a search whose pipeline has been dropped since its statement began, on the one that is active now; raises 40001 where the transaction cannot see it';

create or replace function rag._search_by_document(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.document_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _documents constant integer := options.match_count;
begin
  options.max_per_document := coalesce(options.max_per_document, 3);
  -- So many passages are of at least as many documents as are asked for.
  options.match_count := least(_documents::bigint * options.max_per_document, 100000);
  return query
    select (p.r).document_id, (p.r).source, (p.r).source_key, (p.r).file_path, (p.r).title, max((p.r).hybrid_score),
           (p.r).tags, (p.r).metadata, (p.r).language, array_agg(p.r order by p.place)
    from (select r, row_number() over () as place from rag._search(query_embedding, query_text, options) r) p
    group by 1, 2, 3, 4, 5, 7, 8, 9
    order by min(p.place)
    limit _documents;
end
$plpgsql$;
comment on function rag._search_by_document(vector, text, rag._search_options) is 'what a search finds, by document';

------------------------------------------------------------------------------------------------
-- What applications call
------------------------------------------------------------------------------------------------

-- All forms take the same options: they are listed once, in the order of rag._search_options.
do $do$
declare
  _options  constant text := $$
    match_count      integer     default 10,
    document_filter  bigint[]    default null,
    tenant_filter    bigint      default null,
    semantic_weight  float       default null,
    mode             text        default 'hybrid',
    fusion           text        default 'weighted',
    min_score        float       default null,
    max_per_document integer     default null,
    source           text        default null,
    tags_filter      text[]      default null,
    tags_match       text        default 'any',
    metadata_filter  jsonb       default null,
    language         text        default null,
    changed_after    timestamptz default null,
    changed_before   timestamptz default null,
    check_source     boolean     default false,
    context_chunks   integer     default 0,
    highlight        boolean     default false,
    rerank           text        default null,
    pipeline         text        default null$$;
  _meaning  constant text := 'match_count: how many (1 to 10000). document_filter, tenant_filter, source, tags_filter (tags_match: any or all of them), metadata_filter (contained in the metadata), language, changed_after and changed_before (the row in the source): only what passes. mode: hybrid, semantic or text. semantic_weight: 0 (words alone) to 1 (meaning alone), by default chosen for each query. fusion: weighted (each score divided by its best) or rrf (the first place is worth 1). min_score: least hybrid_score. max_per_document: passages of one document. check_source: only rows that the caller may read in the source table. context_chunks: so many neighbours on each side, in context. highlight: fills snippet. rerank: name of a reranker. pipeline: another than the active one. In the text, "…" is a phrase that must be there, -word one that must not, and or stands between alternatives of phrases. Raises 22004 for null, 22023 for arguments out of range, 42704 for a name that is none, 54000 for a filter of more than 100,000 documents, 1,000 tags or 1 MB';
  _form     record;
  _first    integer;
begin
  for _form in
    values
      ('search_documents', 'query_text text', 'rag.search_result', 'volatile', 'rag._search', 'null',
       'the passages that best answer a question, best first; similarity_score is the cosine, text_rank BM25, hybrid_score both fused. An empty text finds nothing. '),
      ('search_documents', 'query_embedding vector, query_text text', 'rag.search_result', 'stable', 'rag._search', 'rag._checked_embedding($1, _options)',
       'as rag.search_documents(text, …), for callers that embed the question themselves, with the model of the pipeline that is searched; an empty text leaves only the meaning. '),
      ('find_documents', 'query_text text', 'rag.document_result', 'volatile', 'rag._search_by_document', 'null',
       'as rag.search_documents(text, …), by document: the documents with the best passages, best first, each with up to max_per_document (default 3) of them. ')
  loop
    _first := cardinality(string_to_array(_form.column2, ','));
    execute format($create$
      create or replace function rag.%1$I(%2$s, %3$s)
        returns setof %4$s
        language plpgsql %5$s
        set search_path = pg_catalog, pg_temp
        -- What the functions below it say is read by the session's rules for literals.
        set standard_conforming_strings = 'on'
      as $plpgsql$
      declare
        _options rag._search_options := rag._checked_options($%6$s, row(%7$s)::rag._search_options);
      begin
        return query select * from %8$s(%9$s, $%6$s, _options);
      end
      $plpgsql$
      $create$, _form.column1, _form.column2, _options, _form.column3, _form.column4, _first,
      (select string_agg('$' || _first + a.attnum, ', ' order by a.attnum)
       from pg_catalog.pg_attribute a where a.attrelid = 'rag._search_options'::pg_catalog.regclass and a.attnum > 0),
      _form.column5, _form.column6);
    execute format('comment on function rag.%I(%s, %s) is %L', _form.column1,
                   regexp_replace(_form.column2, '\w+ (\w+)', '\1', 'g'),
                   regexp_replace(_options, '\w+\s+(\w+(\[\])?)\s+default [^,]+', '\1', 'g'), _form.column7 || _meaning);
  end loop;
end
$do$;
