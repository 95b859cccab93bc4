-- Evaluation: measures in the database how well searches rank.

create or replace function rag._dcg(gains float[]) returns float
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$ select coalesce(sum(g / log(2, place + 1)), 0)::float from unnest(gains) with ordinality as u (g, place) $sql$;
comment on function rag._dcg(float[]) is 'discounted cumulative gain: each gain divided by log2 of its place + 1';

create or replace function rag._require_judgements(queries regclass, judgements regclass, source text) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _query   text;
  _key     text;
  _sources text[];
  _matches boolean;
begin
  if queries is null or judgements is null then
    raise exception '% is null', case when queries is null then 'queries' else 'judgements' end
      using errcode = 'null_value_not_allowed',
            hint    = 'Both are tables: select * from rag.evaluate(''queries'', ''judgements'');';
  end if;
  perform rag._require_column(queries, c, 'queries', null) from unnest('{query_id,query_text}'::name[]) c;
  perform rag._require_column(judgements, c, 'judgements', null) from unnest('{query_id,source_key,relevance}'::name[]) c;

  execute format('select exists (select from %s q join %s j on j.query_id::text = q.query_id::text where j.relevance > 0)',
                 queries, judgements)
  into _matches;
  if not _matches then
    raise exception 'no query of % has a judgement in % with a relevance above 0', queries, judgements
      using errcode = 'invalid_parameter_value',
            hint    = format('They are joined by query_id: select query_id from %s; select query_id from %s;', queries, judgements);
  end if;
  execute format('select q.query_id::text from %s q join %s j on j.query_id::text = q.query_id::text'
                 ' where q.query_text is null order by 1 limit 1', queries, judgements)
  into _query;
  if _query is not null then
    raise exception 'query "%" has no query_text', _query
      using errcode = 'null_value_not_allowed',
            hint    = format('Fill it in, or leave it out: delete from %s where query_text is null;', queries);
  end if;
  execute format('select q.query_id::text from %s q join %s j on j.query_id::text = q.query_id::text'
                 ' where j.source_key is null order by 1 limit 1', queries, judgements)
  into _query;
  if _query is not null then
    raise exception 'a judgement of query "%" has no source_key', _query
      using errcode = 'null_value_not_allowed',
            hint    = format('Fill it in, or leave it out: delete from %s where source_key is null;', judgements);
  end if;
  if source is null then
    execute format($sql$
      select j.query_id::text, j.source_key::text, array_agg(distinct s.name)
      from %s j
      join rag.documents d on d.source_key = j.source_key::text
      join rag.sources s on s.source_id = d.source_id
      where j.relevance > 0
      group by 1, 2 having count(distinct s.source_id) > 1 order by 1, 2 limit 1
      $sql$, judgements)
    into _query, _key, _sources;
    if _query is not null then
      raise exception 'source_key "%", judged for query "%", is in more than one source', _key, _query
        using errcode = 'invalid_parameter_value',
              detail  = format('It is in: %s.', array_to_string(_sources, ', ')),
              hint    = format('Name the one that is judged: select * from rag.evaluate(%L, %L, source => %L);',
                               queries, judgements, _sources[1]);
    end if;
  end if;
end
$plpgsql$;
comment on function rag._require_judgements(regclass, regclass, text) is
  'raises 22004 for a null, 42703 for a missing column, 22023 if no query is judged or a judged key is in several sources';

create or replace function rag.evaluate(
    queries    regclass,
    judgements regclass,
    k          integer default 10,
    modes      text[]  default '{hybrid,semantic,text}',
    pipelines  text[]  default null,
    source     text    default null)
  returns table (pipeline text, mode text, queries_asked bigint, ndcg float, recall float, mrr float, "precision" float, median_ms float)
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
  -- The functions called use literals, whose meaning the session's setting could change.
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _pipelines constant text[] := coalesce(evaluate.pipelines, array[(rag._active_pipeline()).name]);
  _query     record;
  _run       record;
  _started   timestamptz;
  _gains     float[];
  _runs      rag._evaluated[] := '{}';
begin
  if evaluate.k is null or evaluate.k not between 1 and 1000 then
    raise exception 'k is from 1 to 1000, not %', coalesce(evaluate.k::text, 'null')
      using errcode = 'invalid_parameter_value',
            hint    = 'k is the number of documents of each answer that count: k => 10.';
  end if;
  if evaluate.modes is null or cardinality(evaluate.modes) = 0 or cardinality(_pipelines) = 0 then
    raise exception '% names nothing to ask', case when cardinality(_pipelines) = 0 then 'pipelines' else 'modes' end
      using errcode = 'invalid_parameter_value',
            hint    = 'Leave it out for all modes of the active pipeline, or type: modes => ''{hybrid,text}''.';
  end if;
  perform rag._require_judgements(evaluate.queries, evaluate.judgements, evaluate.source);

  for _query in execute format($sql$
      select q.query_text::text as query_text, j.relevance, j.ideal
      from %s q
      join (select d.query_id, jsonb_object_agg(d.source_key, d.relevance) as relevance,
                   array_agg(power(2.0, d.relevance) - 1 order by d.relevance desc)::float[] as ideal
            -- A document that is judged twice counts once.
            from (select j.query_id::text as query_id, j.source_key::text as source_key, max(j.relevance) as relevance
                  from %s j where j.relevance > 0 group by 1, 2) d
            group by 1) j on j.query_id = q.query_id::text
      $sql$, evaluate.queries, evaluate.judgements)
  loop
    -- The embedding is put into the cache before the time is taken, so that it costs all modes the same.
    perform rag._question_embedding((rag._parse_query(_query.query_text)).plain, 'hybrid', m.model)
    from (select distinct p.model from rag.pipelines p where p.name = any (_pipelines)) m
    where evaluate.modes <> '{text}';
    for _run in select p.name, m.name as mode from unnest(_pipelines) p (name), unnest(evaluate.modes) m (name) loop
      _started := clock_timestamp();
      select array_agg(power(2.0, coalesce((_query.relevance ->> d.source_key)::float, 0)) - 1 order by d.place) into _gains
      from rag.find_documents(_query.query_text, match_count => evaluate.k, max_per_document => 1, mode => _run.mode,
                              source => evaluate.source, pipeline => _run.name)
           with ordinality as d (document_id, source, source_key, file_path, title, score, tags, metadata, language, passages, place);
      _runs := _runs || row(_run.name, _run.mode,
        rag._dcg(_gains) / rag._dcg(_query.ideal[:evaluate.k]),
        (select count(*) filter (where g > 0) from unnest(_gains) g) / cardinality(_query.ideal)::float,
        coalesce((select 1.0 / min(i) from unnest(_gains) with ordinality as u (g, i) where g > 0), 0),
        (select count(*) filter (where g > 0) from unnest(_gains) g) / evaluate.k::float,
        extract(epoch from clock_timestamp() - _started) * 1000)::rag._evaluated;
    end loop;
  end loop;
  return query
    select r.pipeline, r.mode, count(*), avg(r.ndcg), avg(r.recall), avg(r.reciprocal_rank), avg(r.share_relevant),
           percentile_cont(0.5) within group (order by r.duration_ms)
    from unnest(_runs) r
    group by 1, 2
    order by array_position(_pipelines, r.pipeline), array_position(evaluate.modes, r.mode);
end
$plpgsql$;
comment on function rag.evaluate(regclass, regclass, integer, text[], text[], text) is
  e'measures how well searches rank, by pipeline and mode, over all judged queries: nDCG@k (gain 2^relevance − 1), recall@k, mean'
  ' reciprocal rank and precision@k of the documents found, and the median time (with the embedding from'
  ' the cache if it is on).'
  '\n\n- queries: a table with the columns query_id and query_text\n'
  '- judgements: a table with the columns query_id, source_key (the key of the row in its source) and relevance (0: not relevant)\n'
  '- k: number of documents of each answer that count\n'
  '- modes: of hybrid, semantic and text\n'
  '- pipelines: their names, by default the active one; name a second one to compare before switching\n'
  '- source: the only source that is searched; needed if a judged key is in several'
  '\n\nRaises 42703 for a missing column, 22004 for a null, 22023 if no query is judged or a judged key is in several sources, and 22023'
  ' and 42704 as searches do';

create or replace function rag.ann_recall(
    sample   integer default 100,
    k        integer default 10,
    pipeline text    default null)
  returns table (queries bigint, recall float, worst float, index_ms float, exact_ms float)
  language plpgsql volatile
  set search_path = pg_catalog, pg_temp
  set hnsw.iterative_scan = 'strict_order'
  set hnsw.ef_search = '100'
  set ivfflat.iterative_scan = 'relaxed_order'
  set ivfflat.probes = '10'
as $plpgsql$
declare
  _pipeline constant rag.pipelines := rag._pipeline(coalesce(ann_recall.pipeline, 'active'));
  _from     constant text := format('rag.document_chunks c where c.pipeline_id = %s', _pipeline.pipeline_id);
  _options  constant rag._search_options := null;
  _query    record;
  _started  timestamptz;
  _by_index bigint[];
  _exact    bigint[];
  _recalls  float[] := '{}';
  _index_ms float[] := '{}';
  _exact_ms float[] := '{}';
begin
  if ann_recall.sample is null or ann_recall.sample not between 1 and 100000
     or ann_recall.k is null or ann_recall.k not between 1 and 1000 then
    raise exception 'sample is from 1 to 100000 and k from 1 to 1000'
      using errcode = 'invalid_parameter_value',
            hint    = 'Leave them out for 100 queries and their 10 nearest, or type: rag.ann_recall(sample => 200).';
  end if;
  perform rag._set_index_effort(_pipeline, 100);
  for _query in execute format('select c.chunk_id, c.embedding from %s order by random() limit %s', _from, ann_recall.sample) loop
    _started  := clock_timestamp();
    -- As many as a search asks for, and at least one more than k: each passage finds itself, which is left out.
    _by_index := array_remove(rag._dense_candidates(_from, _query.embedding, _options, null, _pipeline,
                                                    wanted => greatest(ann_recall.k + 1, 100),
                                                    by_index => rag._has_vector_index(_pipeline)), _query.chunk_id);
    _index_ms := _index_ms || (extract(epoch from clock_timestamp() - _started) * 1000)::float;
    _started  := clock_timestamp();
    _exact    := array_remove(rag._dense_candidates(_from, _query.embedding, _options, null, _pipeline,
                                                    wanted => ann_recall.k + 1, by_index => false), _query.chunk_id);
    _exact_ms := _exact_ms || (extract(epoch from clock_timestamp() - _started) * 1000)::float;
    if cardinality(_exact) > 0 then
      _recalls := _recalls || (select count(*)::float / least(cardinality(_exact), ann_recall.k)
                               from unnest(_exact[:ann_recall.k]) e where e = any (_by_index[:ann_recall.k]));
    end if;
  end loop;
  return query
    select count(*), avg(r), min(r),
           (select percentile_cont(0.5) within group (order by i) from unnest(_index_ms) i),
           (select percentile_cont(0.5) within group (order by e) from unnest(_exact_ms) e)
    from unnest(_recalls) r;
end
$plpgsql$;
comment on function rag.ann_recall(integer, integer, text) is
  'the share of the k nearest passages that the vector index finds, compared with exact search: mean and worst recall@k over a random'
  ' sample of stored vectors used as questions, and the median time of both. Raises 22023 for a sample or k out of range, 42704 for an'
  ' unknown pipeline';
