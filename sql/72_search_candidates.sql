-- Search: candidates of the vector index and of the words.

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
comment on function rag._query_weights(rag._query_lexeme[]) is
  'idf of each lexeme of a query as a sparsevec''s text form; null where there is none';

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
comment on function rag._rarest_lexemes(rag._query_lexeme[], float) is
  'the rarest lexemes of a query until their chunks add up to the bound: a chunk with only the others is hardly among the best (the idea'
  ' of MaxScore, Turtle and Flood 1995)';

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
comment on function rag._has_vector_index(rag.pipelines) is
  'false for index_method none and while the index is deferred: then comparing all is faster, and exact';

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
comment on function rag._dense_candidates(text, vector, rag._search_options, tsquery, rag.pipelines, integer, boolean) is
  'the nearest chunks, by the vector index or by comparing all';

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
comment on function rag._text_candidates(text, text, text[], rag._search_options, tsquery, integer) is
  'the chunks with any of the lexemes that have the best BM25 by all of them';

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
comment on function rag._exact_candidates(text, vector, text, rag._search_options, tsquery, integer, bigint) is
  'the best chunks of both legs among all that pass the filter; null where these are more than most';

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
comment on function rag._candidates(vector, rag._query_lexeme[], text, rag._search_options, tsquery, rag.pipelines, integer) is
  'chunks worth scoring: up to as many of each leg as are wanted, that many wherever they exist';
