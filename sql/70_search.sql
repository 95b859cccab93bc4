-- Search: two legs, every candidate scored exactly in both, one fused ranking.

create or replace function rag._active_pipeline() returns rag.pipelines
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select p from rag.pipelines p where p.state = 'active' $sql$;
comment on function rag._active_pipeline() is 'the pipeline that searches use';

create or replace function rag._query_lexemes(query_text text, pipeline rag.pipelines)
  returns table (lexeme text, occurrences integer, chunks bigint, idf real)
  language sql stable
  -- SECURITY DEFINER: document frequencies are over all tenants, and the table of them, which would
  -- tell what words others use, stays closed.
  security definer
  set search_path = pg_catalog, pg_temp
as $sql$
  -- idf = ln(1 + (N − n + ½) / (n + ½)), as in Lucene: never negative.
  select u.lexeme, cardinality(u.positions), coalesce(l.chunks, 0),
         ln(1 + (greatest(t.chunks - coalesce(l.chunks, 0), 0) + 0.5) / (coalesce(l.chunks, 0) + 0.5))::real
  from unnest(to_tsvector(pipeline.text_search_config::regconfig, query_text)) u
  cross join (select coalesce(max(l.chunks), 0) as chunks from rag._lexemes l
              where l.pipeline_id = pipeline.pipeline_id and l.lexeme = '') t
  left join rag._lexemes l on l.pipeline_id = pipeline.pipeline_id and l.lexeme = u.lexeme
$sql$;
comment on function rag._query_lexemes(text, rag.pipelines) is 'lexemes of a query, how often each is in it, in how many chunks it occurs, and its inverse document frequency';

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

create or replace function rag._search(
    query_embedding vector, query_text text, match_count integer,
    document_filter bigint[], tenant_filter bigint, semantic_weight float)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- Local to this function. A filtered scan of the vector index goes on until it has enough rows.
  set hnsw.iterative_scan = 'strict_order'
  set hnsw.ef_search = '100'
as $plpgsql$
declare
  -- Of each leg. More than asked for, as the best of the fused ranking may stand lower in each.
  _candidates  constant integer := greatest(100, 2 * match_count);
  -- A filter that leaves fewer chunks than this is searched exactly, by its own index.
  _exact_limit constant integer := 5000;
  -- Chunks whose BM25 is computed: 96 % of the exact top 10 at 940,000 chunks, see docs/search.md.
  _text_bound  constant integer := 10000;
  _none        constant text := 'select null::bigint as chunk_id where false';
  _pipeline    rag.pipelines := rag._active_pipeline();
  _vector      name := rag._vector_schema();
  _chunks      text;
  _filtered    boolean := document_filter is not null or tenant_filter is not null;
  _exact       boolean := false;
  _weights     text;
  _tsquery     text;
  _dense       text := _none;
  _lexical     text := _none;
begin
  if _pipeline.pipeline_id is null or to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
    return;
  end if;
  _chunks := format('rag.document_chunks c where c.pipeline_id = %s', _pipeline.pipeline_id)
    || case when document_filter is not null then ' and c.document_id = any ($3)' else '' end
    || case when tenant_filter is not null then ' and c.tenant_id = $4' else '' end;
  if _filtered then
    execute format('select count(*) < %s from (select from %s limit %s) s', _exact_limit, _chunks, _exact_limit)
    into _exact using null::integer, null::integer, document_filter, tenant_filter;
  end if;

  if query_text <> '' then
    select '{' || string_agg(w.index || ':' || w.weight, ',' order by w.index) || '}/268435456' into _weights
    from (select rag._lexeme_index(l.lexeme) as index, max(l.occurrences * l.idf)::real as weight
          from rag._query_lexemes(query_text, _pipeline) l where l.idf > 0 group by 1) w;
    -- The rarest lexemes until their chunks add up to the bound: a chunk with only the common ones is
    -- hardly among the best (the idea of MaxScore, Turtle and Flood 1995). All count in the score.
    select string_agg('''' || replace(replace(r.lexeme, '\', '\\'), '''', '''''') || '''', '|') into _tsquery
    from (select l.lexeme, sum(l.chunks) over w as total, row_number() over w as place
          from rag._query_lexemes(query_text, _pipeline) l
          window w as (order by l.chunks, l.lexeme)) r
    where r.total <= _text_bound or r.place = 1;
  end if;

  if _exact then
    _dense := 'select c.chunk_id from ' || _chunks;
  else
    if query_embedding is not null then
      _dense := format('select c.chunk_id from %s order by %s operator(%I.<=>) %s limit %s',
        _chunks, rag._indexed_vector(_pipeline.pipeline_id, 'c.embedding'), _vector,
        rag._indexed_vector(_pipeline.pipeline_id, '$1'), _candidates);
    end if;
    if _weights is not null then
      _lexical := format('select c.chunk_id from %s and c.content_tsv @@ $5::tsquery order by c.content_bm25 operator(%I.<#>) $2::%2$I.sparsevec limit %3$s',
        _chunks, _vector, _candidates);
    end if;
  end if;

  perform set_config('hnsw.ef_search', least(_candidates, 1000)::text, true);
  return query execute format($sql$
    with dense as materialized (%1$s),
    lexical as materialized (%2$s),
    scored as materialized (
      select c.chunk_id, 1 - (c.embedding operator(%3$I.<=>) $1) as similarity,
             coalesce(-(c.content_bm25 operator(%3$I.<#>) $2::%3$I.sparsevec), 0) as bm25
      from (select d.chunk_id from dense d union select l.chunk_id from lexical l) u
      join rag.document_chunks c on c.pipeline_id = %4$s and c.chunk_id = u.chunk_id
    ),
    best as (select max(s.similarity) as similarity, max(s.bm25) as bm25 from scored s),
    weight as (
      select b.similarity, b.bm25,
             case when b.similarity is null then 0 when coalesce(b.bm25, 0) = 0 then 1
                  else coalesce($6, rag._automatic_weight($1, b.similarity, %4$s)) end as semantic
      from best b
    ),
    fused as (
      select s.chunk_id, s.similarity, s.bm25,
             w.semantic * coalesce(s.similarity / nullif(greatest(w.similarity, 0), 0), 0)
               + (1 - w.semantic) * coalesce(s.bm25 / nullif(w.bm25, 0), 0) as score
      from scored s cross join weight w
      order by score desc, s.chunk_id
      limit $7
    )
    select f.chunk_id, c.document_id, c.content, f.similarity, f.bm25, f.score, c.page_number, c.chunk_index,
           s.name, d.source_key, d.file_path, coalesce(d.title, d.extracted ->> 'title'), c.section, c.tags, d.metadata
    from fused f
    join rag.document_chunks c on c.pipeline_id = %4$s and c.chunk_id = f.chunk_id
    join rag.documents d on d.source_id = c.source_id and d.document_id = c.document_id
    join rag.sources s on s.source_id = c.source_id
    order by f.score desc, f.chunk_id
    $sql$, _dense, _lexical, _vector, _pipeline.pipeline_id)
  using query_embedding, _weights, document_filter, tenant_filter, _tsquery, semantic_weight, match_count;
end
$plpgsql$;
comment on function rag._search(vector, text, integer, bigint[], bigint, float) is 'candidates of both legs, scored exactly in both, fused';

create or replace function rag._check_search(query_text text, match_count integer, semantic_weight float) returns void
  language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if query_text is null then
    raise exception 'query_text is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'Type: select content, page_number from rag.search_documents(''your question'');';
  elsif match_count is null or match_count not between 1 and 10000 then
    raise exception 'match_count is from 1 to 10000, not %', coalesce(match_count::text, 'null')
      using errcode = 'invalid_parameter_value',
            hint    = 'Leave it out for 10, or type: match_count => 20.';
  elsif semantic_weight not between 0 and 1 then
    raise exception 'semantic_weight is from 0 to 1, not %', semantic_weight
      using errcode = 'invalid_parameter_value',
            hint    = '0 is text alone, 1 meaning alone, 0.7 what the earlier worker had; leave it out for an automatic weight.';
  end if;
end
$plpgsql$;
comment on function rag._check_search(text, integer, float) is 'raises 22004 or 22023 for arguments a search cannot have';

create or replace function rag.search_documents(
    query_embedding vector,
    query_text      text,
    match_count     integer  default 10,
    document_filter bigint[] default null,
    tenant_filter   bigint   default null,
    semantic_weight float    default null)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _dimension integer;
  _given     integer;
begin
  perform rag._check_search(search_documents.query_text, search_documents.match_count, search_documents.semantic_weight);
  if search_documents.query_embedding is null then
    raise exception 'query_embedding is null'
      using errcode = 'null_value_not_allowed',
            hint    = 'Leave it out and the text is embedded here: select content from rag.search_documents(''your question'');';
  end if;
  select m.dimension into _dimension
  from rag.pipelines p join rag.models m on m.name = p.model where p.state = 'active';
  execute format('select %I.vector_dims($1)', rag._vector_schema()) into _given using search_documents.query_embedding;
  if _given <> _dimension then
    raise exception 'query_embedding has % dimensions, the active pipeline %', _given, _dimension
      using errcode = 'invalid_parameter_value',
            detail  = 'A query is compared with vectors of the same model only.',
            hint    = 'Make it with rag.embed(''your question''), or leave it out and the text is embedded here.';
  end if;
  return query select * from rag._search(search_documents.query_embedding, search_documents.query_text, search_documents.match_count,
                                         search_documents.document_filter, search_documents.tenant_filter, search_documents.semantic_weight);
end
$plpgsql$;
comment on function rag.search_documents(vector, text, integer, bigint[], bigint, float) is
  'the passages that best answer a question, best first, for callers that embed it themselves: query_embedding is of the active pipeline''s model. Otherwise like rag.search_documents(text, …); an empty text leaves only the meaning. Raises 22004 for null, 22023 for arguments out of range';

create or replace function rag.search_documents(
    query_text      text,
    match_count     integer  default 10,
    document_filter bigint[] default null,
    tenant_filter   bigint   default null,
    semantic_weight float    default null)
  returns setof rag.search_result
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _embedding rag._query_cache.embedding%type;
  _model     text := (rag._active_pipeline()).model;
begin
  perform rag._check_search(search_documents.query_text, search_documents.match_count, search_documents.semantic_weight);
  if search_documents.query_text !~ '\S' or _model is null then
    return;
  end if;
  if search_documents.semantic_weight is distinct from 0 then
    begin
      _embedding := rag._embed_query(search_documents.query_text, _model);
    exception when others then
      raise notice 'searching by text alone: model "%" cannot be used', _model
        using detail = sqlerrm, hint = 'Whoever runs the server can see more by: select rag.embed(''test'');';
    end;
  end if;
  return query select * from rag._search(_embedding, search_documents.query_text, search_documents.match_count,
                                         search_documents.document_filter, search_documents.tenant_filter, search_documents.semantic_weight);
end
$plpgsql$;
comment on function rag.search_documents(text, integer, bigint[], bigint, float) is
  'the passages that best answer a question, best first. match_count: how many (1 to 10000); document_filter, tenant_filter: only these documents, only this tenant; semantic_weight: 0 (text alone) to 1 (meaning alone), by default chosen for each query. similarity_score is the cosine, text_rank BM25, hybrid_score the weighted sum of both, each divided by its best. An empty text finds nothing. Raises 22004 for null, 22023 for arguments out of range';
