-- Search: the parts put together, and the functions that applications call.

create or replace function rag._set_index_effort(pipeline rag.pipelines, wanted integer) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Among more passages, more lie nearly as close as the nearest. So from 100,000 passages on the index
  -- looks at a thousandth of them: see bench/search.md.
  select set_config('hnsw.ef_search',
                    least(greatest(wanted * rag._oversampling(pipeline),
                                   coalesce((pipeline.index_options ->> 'ef_search')::integer,
                                            (rag._estimated_chunks(pipeline) / 1000)::integer)), 1000)::text, true),
         set_config('ivfflat.probes', coalesce(pipeline.index_options ->> 'probes',
                    ceil(sqrt(coalesce((pipeline.index_options ->> 'lists')::integer, 100)))::text), true);
$sql$;
comment on function rag._set_index_effort(rag.pipelines, integer) is
  'sets how far the vector index looks, until the end of the calling function if that function sets these parameters itself';

create or replace function rag._search_hits(
    query_embedding vector, question rag._question, options rag._search_options, pipeline rag.pipelines)
  returns rag._search_hit[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  -- These hold within this function. A filtered scan of the vector index goes on until it has enough rows.
  set hnsw.iterative_scan = 'strict_order'
  set hnsw.max_scan_tuples = '100000'
  set hnsw.ef_search = '100'
  set ivfflat.iterative_scan = 'relaxed_order'
  set ivfflat.probes = '10'
  -- Compiling would take longer than running the statements.
  set jit = 'off'
as $plpgsql$
declare
  -- Candidates of each leg. More than asked for, because the best of both legs may stand lower in each.
  _wanted     integer := greatest(100, 2 * options.match_count);
  _condition  constant tsquery := rag._text_condition(question);
  _lexemes    constant rag._query_lexeme[] := rag._query_lexemes(question, pipeline);
  _weights    constant text := rag._query_weights(_lexemes);
  _candidates bigint[];
  _hits       rag._search_hit[];
  _unseen     float;
begin
  if options.mode = 'hybrid' and options.semantic_weight is null and rag._asks_for_code(question.plain, _lexemes, pipeline) then
    options.semantic_weight := 0.2;
  end if;
  loop
    perform rag._set_index_effort(pipeline, _wanted);
    _candidates := rag._candidates(query_embedding, _lexemes, _weights, options, _condition, pipeline, _wanted);
    select f.hits, f.most_unseen into _hits, _unseen
    from rag._fuse(_candidates, query_embedding, _weights, options, pipeline, _wanted) f;
    -- All candidates can be of one long document. Then more are fetched, while unseen passages could reach min_score.
    exit when options.max_per_document is null or cardinality(_hits) >= options.match_count or cardinality(_candidates) < _wanted
           or _unseen < options.min_score;
    _wanted := 8 * _wanted;
  end loop;
  return _hits;
end
$plpgsql$;
comment on function rag._search_hits(vector, rag._question, rag._search_options, rag.pipelines) is
  'the chunks that a search finds, best first';

create or replace function rag._search(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _count    constant integer := options.match_count;
  _pipeline rag.pipelines;
  _question rag._question;
  _hits     rag._search_hit[];
begin
  -- This takes a lock. Whoever drops a pipeline waits for it until the search has ended.
  perform from rag.document_chunks where false;
  _pipeline := rag._pipeline(coalesce(options.pipeline, 'active'));
  if to_regclass(format('rag.%I', rag._partition(_pipeline.pipeline_id))) is null then
    -- to_regclass() sees the present, a query the time when the statement began. If they differ, the
    -- pipeline has just been dropped.
    if exists (select from pg_class c
               where c.relnamespace = 'rag'::regnamespace and c.relname = rag._partition(_pipeline.pipeline_id)) then
      return query select * from rag._search_again(query_embedding, query_text, options);
    end if;
    return;
  end if;
  _question := rag._parsed_question(query_text, _pipeline);
  query_embedding := case when options.mode <> 'text'
                          then coalesce(query_embedding, rag._question_embedding(_question.plain, options.mode, _pipeline.model)) end;
  if options.rerank is not null then
    -- The reranker orders the best 50. Reading more of them with the question would take too long.
    options.match_count := greatest(_count, 50);
  end if;
  _hits := rag._search_hits(query_embedding, _question, options, _pipeline);
  if options.rerank is not null and cardinality(_hits) > 0 then
    _hits := (rag._reranked(_hits, _question.plain, options, _pipeline))[:_count];
  end if;
  return query select * from rag._search_results(_hits, _question, options, _pipeline);
end
$plpgsql$;
comment on function rag._search(vector, text, rag._search_options) is
  'the implementation of all public searches; it embeds the question if no vector is given';

create or replace function rag._search_again(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.search_result
  -- It writes nothing, but must be volatile: only then do its statements see what has been committed since.
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
  'repeats a search whose pipeline has been dropped since the statement began, on the pipeline that is active now; raises 40001 if the'
  ' transaction cannot see that one';

create or replace function rag._search_by_document(query_embedding vector, query_text text, options rag._search_options)
  returns setof rag.document_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _documents constant integer := options.match_count;
begin
  options.max_per_document := coalesce(options.max_per_document, 3);
  -- This many passages belong to at least as many documents as are asked for.
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
comment on function rag._search_by_document(vector, text, rag._search_options) is 'the hits of a search, grouped by document';

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
  -- The functions called use literals, whose meaning the session's setting could change.
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
  e'finds the passages that best answer a question, best first. similarity_score is the cosine, text_rank is BM25, hybrid_score is both'
  ' fused. An empty text finds nothing. In the text, "…" is a phrase that a passage must have, -word a word that it must not have, and or'
  ' separates alternatives of phrases.'
  '\n\n- match_count: number of passages, 1 to 10000\n'
  '- document_filter, tenant_filter, source: only these documents, this tenant, this source\n'
  '- tags_filter, tags_match: only documents with any, or all, of these tags\n'
  '- metadata_filter: only documents whose metadata contain this JSON object\n'
  '- language: only passages in this language, such as en\n'
  '- changed_after, changed_before: only documents whose row changed from the first time on and before the second\n'
  '- check_source: only documents whose row the caller may read in the source table\n'
  '- mode: hybrid, semantic (by meaning alone) or text (by words alone)\n'
  '- semantic_weight: 0 (words alone) to 1 (meaning alone); by default chosen for each question\n'
  '- fusion: weighted (each score divided by the best of its kind) or rrf (reciprocal rank fusion; first in both is 1)\n'
  '- min_score: smallest hybrid_score, 0 to 1\n'
  '- max_per_document: largest number of passages of one document\n'
  '- context_chunks: number of neighbours on each side that the column context includes\n'
  '- highlight: fills the column snippet\n'
  '- rerank: name of a reranker in rag.models\n'
  '- pipeline: name of the pipeline that is searched; by default the active one'
  '\n\nRaises 22004 for null, 22023 for an argument out of range, 42704 for an unknown name, 54000 for a filter of more than 100,000'
  ' documents, 1,000 tags or 1 MB';

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
  -- The functions called use literals, whose meaning the session's setting could change.
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
  return query
    select * from rag._search(rag._checked_embedding(search_documents.query_embedding, _options), search_documents.query_text, _options);
end
$plpgsql$;
comment on function rag.search_documents(vector, text, integer, bigint[], bigint, float, text, text, float, integer, text, text[],
    text, jsonb, text, timestamptz, timestamptz, boolean, integer, boolean, text, text) is
  'searches as rag.search_documents(text, …) does, for callers that embed the question themselves, with the model of the pipeline that is'
  ' searched. With an empty text only the meaning counts. The other arguments and the errors are the same; it also raises 22023 for a'
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
  -- The functions called use literals, whose meaning the session's setting could change.
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
  'searches as rag.search_documents(text, …) does, and returns the documents with the best passages, best first, each with up to'
  ' max_per_document (default 3) passages. The other arguments and the errors are the same';
