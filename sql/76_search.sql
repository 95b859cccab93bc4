-- Search: how its parts are put together, and what applications call.

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
comment on function rag._set_index_effort(rag.pipelines, integer) is
  'how far the vector index looks, until the end of a caller that sets these itself';

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
comment on function rag._search(vector, text, rag._search_options) is
  'the one implementation behind all forms of search; embeds the question where no vector is given';

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
comment on function rag._search_again(vector, text, rag._search_options) is
  'a search whose pipeline has been dropped since its statement began, on the one that is active now; raises 40001 where the transaction'
  ' cannot see it';

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

-- All three take the same options, in the order of rag._search_options.

create or replace function rag.search_documents(
    query_text       text,
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
    pipeline         text        default null)
  returns setof rag.search_result
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
  -- The functions below use literals, which the session's setting could change the meaning of.
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _options constant rag._search_options := rag._checked_options(search_documents.query_text,
    row(search_documents.match_count, search_documents.document_filter, search_documents.tenant_filter,
        search_documents.semantic_weight, search_documents.mode, search_documents.fusion, search_documents.min_score,
        search_documents.max_per_document, search_documents.source, search_documents.tags_filter, search_documents.tags_match,
        search_documents.metadata_filter, search_documents.language, search_documents.changed_after,
        search_documents.changed_before, search_documents.check_source, search_documents.context_chunks,
        search_documents.highlight, search_documents.rerank, search_documents.pipeline)::rag._search_options);
begin
  return query select * from rag._search(null, search_documents.query_text, _options);
end
$plpgsql$;
comment on function rag.search_documents(text, integer, bigint[], bigint, float, text, text, float, integer, text, text[], text,
    jsonb, text, timestamptz, timestamptz, boolean, integer, boolean, text, text) is
  'the passages that best answer a question, best first; similarity_score is the cosine, text_rank BM25, hybrid_score both fused.'
  ' An empty text finds nothing. match_count: how many (1 to 10000). document_filter, tenant_filter, source, tags_filter (tags_match: any or'
  ' all of them), metadata_filter (contained in the metadata), language, changed_after and changed_before (the row in the source): only what'
  ' passes. mode: hybrid, semantic or text. semantic_weight: 0 (words alone) to 1 (meaning alone), by default chosen for each query. fusion:'
  ' weighted (each score divided by its best) or rrf (the first place is worth 1). min_score: least hybrid_score. max_per_document: passages'
  ' of one document. check_source: only rows that the caller may read in the source table. context_chunks: so many neighbours on each side, in'
  ' context. highlight: fills snippet. rerank: name of a reranker. pipeline: another than the active one. In the text, "…" is a phrase that'
  ' must be there, -word one that must not, and or stands between alternatives of phrases. Raises 22004 for null, 22023 for arguments out of'
  ' range, 42704 for a name that is none, 54000 for a filter of more than 100,000 documents, 1,000 tags or 1 MB';

create or replace function rag.search_documents(
    query_embedding  vector,
    query_text       text,
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
    pipeline         text        default null)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- The functions below use literals, which the session's setting could change the meaning of.
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _options constant rag._search_options := rag._checked_options(search_documents.query_text,
    row(search_documents.match_count, search_documents.document_filter, search_documents.tenant_filter,
        search_documents.semantic_weight, search_documents.mode, search_documents.fusion, search_documents.min_score,
        search_documents.max_per_document, search_documents.source, search_documents.tags_filter, search_documents.tags_match,
        search_documents.metadata_filter, search_documents.language, search_documents.changed_after,
        search_documents.changed_before, search_documents.check_source, search_documents.context_chunks,
        search_documents.highlight, search_documents.rerank, search_documents.pipeline)::rag._search_options);
begin
  return query select * from rag._search(rag._checked_embedding(search_documents.query_embedding, _options), search_documents.query_text, _options);
end
$plpgsql$;
comment on function rag.search_documents(vector, text, integer, bigint[], bigint, float, text, text, float, integer, text, text[],
    text, jsonb, text, timestamptz, timestamptz, boolean, integer, boolean, text, text) is
  'as rag.search_documents(text, …), for callers that embed the question themselves, with the model of the pipeline that is searched; an'
  ' empty text leaves only the meaning. The other arguments are the same. Raises what rag.search_documents(text, …) raises, and 22023 for a'
  ' vector of another dimension or of a length that cannot be compared';

create or replace function rag.find_documents(
    query_text       text,
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
    pipeline         text        default null)
  returns setof rag.document_result
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
  -- The functions below use literals, which the session's setting could change the meaning of.
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _options constant rag._search_options := rag._checked_options(find_documents.query_text,
    row(find_documents.match_count, find_documents.document_filter, find_documents.tenant_filter, find_documents.semantic_weight,
        find_documents.mode, find_documents.fusion, find_documents.min_score, find_documents.max_per_document,
        find_documents.source, find_documents.tags_filter, find_documents.tags_match, find_documents.metadata_filter,
        find_documents.language, find_documents.changed_after, find_documents.changed_before, find_documents.check_source,
        find_documents.context_chunks, find_documents.highlight, find_documents.rerank, find_documents.pipeline)::rag._search_options);
begin
  return query select * from rag._search_by_document(null, find_documents.query_text, _options);
end
$plpgsql$;
comment on function rag.find_documents(text, integer, bigint[], bigint, float, text, text, float, integer, text, text[], text,
    jsonb, text, timestamptz, timestamptz, boolean, integer, boolean, text, text) is
  'as rag.search_documents(text, …), by document: the documents with the best passages, best first, each with up to max_per_document'
  ' (default 3) of them. The other arguments are the same, and so are the errors';
