-- Search: reranking by a cross-encoder.

create or replace function rag._rerank_scores(query_text text, passages text[], model text) returns float[]
  -- Not parallel safe: a parallel worker cannot handle an exception.
  language plpgsql stable strict
  -- SECURITY DEFINER: callers may not call Python themselves. Here they can do so only with an existing reranker.
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
            hint    = 'The folder that location in rag.models names must hold model.onnx and tokenizer.json, the server''s account must be'
                      ' able to read them, and the model must give one score for each passage. To search without it, leave rerank out.';
end
$plpgsql$;
comment on function rag._rerank_scores(text, text[], text) is
  'rag._rerank() for roles that may search; raises 42704 for an unknown reranker, 38000 for one that cannot be used';

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
comment on function rag._reranked(rag._search_hit[], text, rag._search_options, rag.pipelines) is
  'the hits, ordered by the score of a reranker';
