-- Search: candidates, found by the vector index and by words.

create or replace function rag._query_weights(lexemes rag._query_lexeme[]) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- A weight becomes text on its way into the vector: with fewer digits, other passages would come first.
  set extra_float_digits = '1'
as $plpgsql$
begin
  -- The size of a sparsevec is limited, so at most the 1,000 words with the highest weight count.
  return (
    select '{' || string_agg(w.index || ':' || w.weight, ',' order by w.index) || '}/268435456'
    from (select rag._lexeme_index(l.lexeme, l.text_search_config) as index, max(l.occurrences * l.idf)::real as weight
          from unnest(lexemes) l
          where l.chunks > 0 group by 1 order by 2 desc limit 1000) w);
end
$plpgsql$;
comment on function rag._query_weights(rag._query_lexeme[]) is
  'idf of each lexeme of a question, in the text form of a sparsevec; null if no chunk has any of them';

create or replace function rag._lexeme_query(lexemes text[]) returns tsquery
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (select string_agg('''' || replace(replace(l, '\', '\\'), '''', '''''') || '''', '|') from unnest(lexemes) l);
end
$plpgsql$;
comment on function rag._lexeme_query(text[]) is 'a query that matches any of the lexemes';

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
  'the rarest lexemes of a question, as many as have together no more chunks than the bound, and at least one; a chunk that has only the'
  ' other lexemes is hardly among the best (the idea of MaxScore, Turtle and Flood 1995)';

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
  'whether searches use the vector index; with index_method none, and while the index is deferred, they compare all vectors';

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
      -- The index has one bit for each dimension. It finds more chunks than wanted, which the stored vectors then rank.
      _sql := 'select array(select c.chunk_id from (select c.chunk_id, c.embedding from %1$s order by %2$s limit %5$s) c
                            order by c.embedding operator(%4$I.<=>) $3 limit %3$s)';
    end if;
  else
    -- Adding 0 keeps the planner off the index, so that all chunks that pass the filter are compared.
    _order := format('(c.embedding operator(%I.<=>) $3) + 0', _vector);
  end if;
  execute format(_sql, from_sql, _order, wanted, _vector, wanted * rag._oversampling(pipeline))
  into _found using options, condition, query_embedding;
  return _found;
end
$plpgsql$;
comment on function rag._dense_candidates(text, vector, rag._search_options, tsquery, rag.pipelines, integer, boolean) is
  'the nearest chunks that pass a filter, by the vector index or by comparing all';

create or replace function rag._text_candidates(
    from_sql text, weights text, lexemes text[], options rag._search_options, condition tsquery, wanted integer)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- The planner underestimates comparing lexemes: each row must be fetched and decompressed. At 5,000
  -- chunks a sequential scan takes 80 times as long as the index.
  set enable_seqscan = 'off'
as $plpgsql$
declare
  _found bigint[];
begin
  -- With row security, the core's @@ could not use the index. The operator rag.@@, which is
  -- rag._matches(), is leakproof and can.
  execute format('select array(select c.chunk_id from %s and c.content_tsv operator(rag.@@) $4
                               order by c.content_bm25 operator(%I.<#>) $3::%2$I.sparsevec limit %3$s)',
                 from_sql, rag._vector_schema(), wanted)
  into _found using options, condition, weights, rag._lexeme_query(lexemes);
  return _found;
end
$plpgsql$;
comment on function rag._text_candidates(text, text, text[], rag._search_options, tsquery, integer) is
  'the chunks with the best BM25 among those that pass a filter and have any of the lexemes';

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
  'the best chunks of both legs, by scoring all that pass the filter; null if more than most pass';

create or replace function rag._estimated_chunks(pipeline rag.pipelines) returns float
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select greatest(c.reltuples, 1)::float from pg_class c where c.oid = to_regclass(format('rag.%I', rag._partition(pipeline.pipeline_id)))
$sql$;
comment on function rag._estimated_chunks(rag.pipelines) is 'how many chunks a pipeline has, as of the last analyze; at least 1';

create or replace function rag._text_leg_candidates(
    from_sql text, lexemes rag._query_lexeme[], weights text, options rag._search_options, condition tsquery,
    chunks float, matching float, wanted integer, needed integer)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  -- How many chunks may be scored: enough for 96 % of the exact top 10, see bench/search.md. A filter
  -- discards most of what the lexemes find, so with one up to 20 times as many may be scored.
  _unfiltered constant float := least(greatest(10 * sqrt(chunks), 3000), 30000);
  _bound      float := least(_unfiltered * chunks / matching, 20 * _unfiltered);
  _found      bigint[];
begin
  -- While too few chunks are found, more of the common words are added, the rarer ones first.
  loop
    _found := rag._text_candidates(from_sql, weights, rag._rarest_lexemes(lexemes, _bound), options, condition, wanted);
    exit when cardinality(_found) >= needed or _bound = 'infinity';
    _bound := case when _bound < chunks then 10 * _bound else 'infinity' end;
  end loop;
  return _found;
end
$plpgsql$;
comment on function rag._text_leg_candidates(
    text, rag._query_lexeme[], text, rag._search_options, tsquery, float, float, integer, integer) is
  'candidates by words: those of the rarest words, and of the common ones too while fewer than needed are found';

create or replace function rag._candidates(
    query_embedding vector, lexemes rag._query_lexeme[], weights text, options rag._search_options, condition tsquery,
    pipeline rag.pipelines, wanted integer)
  returns bigint[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _filter   constant text    := rag._search_filter(options, condition);
  _from     constant text    := format('rag.document_chunks c where c.pipeline_id = %s%s', pipeline.pipeline_id, _filter);
  _chunks   constant float   := rag._estimated_chunks(pipeline);
  _by_index constant boolean := wanted <= 10000 and rag._has_vector_index(pipeline);
  _matching float    := _chunks;
  _few      bigint;
  _exact    bigint[];
  _dense    bigint[] := '{}';
  _lexical  bigint[] := '{}';
begin
  -- With a selective filter, all chunks that pass are scored.
  if _filter <> '' or row_security_active('rag.document_chunks') then
    _matching := least(rag._estimated_rows(_from, options, condition), _chunks);
    -- Scoring this many costs as much as walking the index until enough chunks pass, see bench/search.md.
    _few := greatest(3000, sqrt(1200 * _chunks));
    if _matching <= _few then
      -- The estimate can be wrong. If more than four times as many pass, the search goes on below.
      _exact := rag._exact_candidates(_from, query_embedding, weights, options, condition, wanted, 4 * _few);
      if _exact is not null then
        return _exact;
      end if;
    end if;
  end if;

  -- The dense leg. The index gives up at hnsw.max_scan_tuples, before it has found enough chunks that
  -- pass a selective filter. Then all are compared.
  if query_embedding is not null then
    _dense := rag._dense_candidates(_from, query_embedding, options, condition, pipeline, wanted, _by_index);
    if cardinality(_dense) < wanted and _by_index then
      _dense := rag._dense_candidates(_from, query_embedding, options, condition, pipeline, wanted, false);
    end if;
  end if;

  -- The text leg. Without the dense leg it must fill the page by itself.
  if weights is not null and options.mode <> 'semantic' then
    _lexical := rag._text_leg_candidates(_from, lexemes, weights, options, condition, _chunks, _matching, wanted,
      needed => case when query_embedding is not null then 0
                     when options.max_per_document is null then options.match_count
                     else wanted end);
  end if;
  return _dense || _lexical;
end
$plpgsql$;
comment on function rag._candidates(vector, rag._query_lexeme[], text, rag._search_options, tsquery, rag.pipelines, integer) is
  'the chunks that are scored: as many candidates of each leg as are wanted, or all there are';
