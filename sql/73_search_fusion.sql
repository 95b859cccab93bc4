-- Search: every candidate gets its exact score in both legs, and the two scores are fused into one ranking.

create or replace function rag._automatic_weight(query_embedding vector, best_similarity float, pipeline_id integer) returns float
  language plpgsql stable
  -- SECURITY DEFINER: the sample of vectors is of all tenants, so callers cannot read it. Only one number leaves this function.
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
  -- The weight is 0.4 where the best passage lies 2.5 standard deviations above the sample, and rises to
  -- 0.8 at 8 deviations. This ranked best on 16 collections, see bench/search.md. Without a sample it is 0.5.
  return coalesce(0.4 + 0.4 * least(greatest(((best_similarity - _mean) / nullif(_deviation, 0) - 2.5) / 5.5, 0), 1), 0.5);
end
$plpgsql$;
comment on function rag._automatic_weight(vector, float, integer) is
  'weight of the dense leg, 0.4 to 0.8: how far its best hit stands out from a random sample of passages. A model that does not know the'
  ' language separates them badly and gets a low weight';

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
  -- Each word has a digit, as in 10.0.0.1 or v2.3.1. Only ASCII: in scripts without spaces a word can be a sentence.
  if octet_length(query_text) = length(query_text) and query_text !~ '(^|\s)[^\d\s]*[[:alpha:]][^\d\s]*(\s|$)' then
    return true;
  end if;
  -- Or at most two words stand beside a code that the corpus has. A code needs four digits here, because
  -- embeddings represent names with fewer, such as COVID-19 and IL-6, well.
  _codes := array(select c from unnest(rag._codes(query_text)) c where c ~ '(\d\D*){4}');
  foreach _code in array _codes loop
    _rest := replace(_rest, _code, ' ');
  end loop;
  return cardinality(_codes) > 0
     and length(to_tsvector(pipeline.text_search_config::regconfig, _rest)) <= 2
     and exists (select from unnest(lexemes) l where l.chunks > 0 and l.lexeme = any (_codes));
end
$plpgsql$;
comment on function rag._asks_for_code(text, rag._query_lexeme[], rag.pipelines) is
  'whether a question asks for a number or code, which embeddings represent badly: all of its words have digits, or it is a code of four'
  ' digits or more that the corpus has, with at most two other words';

create or replace function rag._share_of_best(score float, best float) returns float
  language sql immutable parallel safe
  -- The body is bound to its functions when it is created and needs no search path, so it can be inlined.
  return greatest(coalesce(score / nullif(greatest(best, 0), 0), 0), 0);
comment on function rag._share_of_best(float, float) is
  'a score divided by the best of its leg; 0 for a negative score, and if the best is not positive';

create or replace function rag._fuse(
    candidates bigint[], query_embedding vector, weights text, options rag._search_options, pipeline rag.pipelines, wanted integer,
    out hits rag._search_hit[], out most_unseen float)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- $1 candidates, $2 query_embedding, $3 weights, $4 options, $5 wanted
  execute format($sql$
    with
    -- Both scores of each candidate. A stored vector of zeros has no similarity.
    candidate as materialized (
      select c.chunk_id, c.source_id, c.document_id, c.chunk_index, nullif(1 - (c.embedding operator(%1$I.<=>) $2), 'NaN') as similarity,
             coalesce(-(c.content_bm25 operator(%1$I.<#>) $3::%1$I.sparsevec), 0) as bm25
      from rag.document_chunks c
      where c.pipeline_id = %2$s and c.chunk_id = any ($1)
    ),
    -- The same scores mixed with those of the neighbours, because cutting separates a passage from its
    -- context: see docs/search.md. The join is lateral so that neighbours are found by index.
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
    -- The place of each candidate in each leg.
    placed as (
      select s.*, case when s.similarity is not null then rank() over (order by s.similarity desc) end as semantic_place,
             case when s.bm25 > 0 then rank() over (order by s.bm25 desc) end as text_place
      from scored s
    ),
    -- The best score of each leg, by which the others are divided.
    best as (
      select max(s.similarity) as similarity, max(s.bm25) as bm25,
             max(s.similarity_in_context) as similarity_in_context, max(s.bm25_in_context) as bm25_in_context
      from scored s
    ),
    -- The weight of the dense leg. Materialized, because the automatic weight reads the whole sample and
    -- would otherwise be computed again for each candidate.
    weight as materialized (
      select b.similarity_in_context, b.bm25_in_context,
             case when b.similarity is null then 0
                  when coalesce(b.bm25, 0) = 0 or ($4).mode = 'semantic' then 1
                  when ($4).fusion = 'rrf' then coalesce(($4).semantic_weight, 0.5)
                  else coalesce(($4).semantic_weight, rag._automatic_weight($2, b.similarity, %2$s)) end as semantic
      from best b
    ),
    -- The fused score. Reciprocal rank fusion is that of Cormack, Clarke and Buettcher, 2009, with their
    -- constant 60; the factor 61 makes the first place in both legs worth 1.
    fused as (
      select p.*,
             case ($4).fusion
               when 'rrf' then 61 * (w.semantic * coalesce(1.0 / (60 + p.semantic_place), 0)
                                     + (1 - w.semantic) * coalesce(1.0 / (60 + p.text_place), 0))
               else w.semantic * rag._share_of_best(p.similarity_in_context, w.similarity_in_context)
                    + (1 - w.semantic) * rag._share_of_best(p.bm25_in_context, w.bm25_in_context)
             end as score
      from placed p cross join weight w
    ),
    -- min_score, and the place of each passage within its document, for max_per_document.
    limited as (
      select f.*, row_number() over (partition by f.source_id, f.document_id
                                     order by f.score desc, f.similarity desc nulls last, f.chunk_id) as place_in_document
      from fused f
      where ($4).min_score is null or f.score >= ($4).min_score
    ),
    -- The most that a passage which is not a candidate could score: in each leg it stands below the last
    -- of those that were wanted.
    last_wanted as (
      select min(p.similarity) filter (where p.semantic_place <= $5) as similarity,
             case when count(p.text_place) >= $5 then min(p.bm25) filter (where p.text_place <= $5) end as bm25
      from placed p
      where ($4).min_score is not null
    ),
    unseen as (
      select case ($4).fusion
               when 'rrf' then 61.0 / (61 + $5)
               else w.semantic * rag._share_of_best(l.similarity, w.similarity_in_context)
                    + (1 - w.semantic) * rag._share_of_best(l.bm25, w.bm25_in_context)
             end as score
      from last_wanted l cross join weight w
      where ($4).min_score is not null
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
comment on function rag._fuse(bigint[], vector, text, rag._search_options, rag.pipelines, integer) is
  'the candidates by their fused score, best first; and, if there is a min_score, the most that a passage which is not a candidate could'
  ' score, if that many of each leg were wanted';
