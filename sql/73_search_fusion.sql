-- Search: every candidate is scored exactly in both legs; both scores are fused into one ranking.

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
comment on function rag._automatic_weight(vector, float, integer) is
  'weight of the dense leg, 0.4 to 0.8, by how sharply it separates its best hit from the background: a model that does not know the'
  ' language does not';

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
comment on function rag._asks_for_code(text, rag._query_lexeme[], rag.pipelines) is
  'the question is for a number or code, of which vectors know little: all of its words have digits, or it is a code of four digits or'
  ' more that is somewhere in the corpus, with no more than two words beside it';

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
comment on function rag._fuse(bigint[], vector, text, rag._search_options, rag.pipelines, integer) is
  'the candidates, scored exactly in both legs, by their fused score; and, where there is a min_score, what a passage that is none of'
  ' these could score at most, if so many of each leg were wanted';
