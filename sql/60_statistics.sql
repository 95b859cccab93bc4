-- Statistics of the corpus that searches rank by: document frequencies, average length, a sample of vectors. And those
-- of the planner, which a search depends on just as much.
--
-- What workers do here touches the documents of many transactions of the application. It therefore never waits for one:
-- it locks documents before their chunks, as everyone does, and passes over those that are locked.

create or replace function rag._is_due_for_analyze(relation regclass) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The size in pages, which needs no reading. Below 16 pages every plan is fast.
  select s.pages >= 2 * greatest(c.relpages, 8)
         -- The indexes of a restored table have counted its rows, but nothing has analyzed it.
         or s.pages >= 16
            and not exists (select from pg_stats t join pg_namespace n on n.nspname = t.schemaname
                             where n.oid = c.relnamespace and t.tablename = c.relname and t.attname = 'document_id')
    from pg_class c
   cross join lateral (select pg_relation_size(c.oid) / 8192 as pages) s
   where c.oid = relation
$sql$;
comment on function rag._is_due_for_analyze(regclass) is
  'whether a table has twice the size that the planner knows of, or no statistics of its columns';

create or replace function rag._analyze_grown_tables() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _table record;
begin
  for _table in
    -- All columns that conditions of searches name; without those of pipeline_id the planner expects a two-hundredth of
    -- the rows and reads all vectors. Vectors and texts, which are most of the work, make no difference.
    select to_regclass(format('rag.%I', rag._partition(p.pipeline_id))) as relation,
           'pipeline_id, chunk_id, source_id, document_id, tenant_id, chunk_index, tags, language, text_search_config, content_tsv'
             as columns
      from rag.pipelines p
     where p.state in ('active', 'building')
    union all
    select 'rag.documents'::regclass, 'source_id, document_id, source_key, tenant_id, tags, metadata, language, updated_at'
  loop
    continue when _table.relation is null or not rag._is_due_for_analyze(_table.relation);
    begin
      -- Waiting would cancel an autovacuum that is at the same, or wait for an index to be built.
      execute format('lock table %s in share update exclusive mode nowait', _table.relation);
      execute format('analyze %s (%s)', _table.relation, _table.columns);
    exception when lock_not_available then
      null;
    end;
  end loop;
end
$plpgsql$;
comment on function rag._analyze_grown_tables() is
  'analyzes the tables that searches read where they have grown to twice their size: a search right after a load must not wait for'
  ' autovacuum. Tables that another session vacuums, analyzes or indexes are left for the next time';

create or replace function rag._weigh_anew(statistics rag._pipeline_statistics) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _document record;
  _count    integer := 0;
begin
  for _document in
    select c.source_id, c.document_id
      from rag.document_chunks c
     where c.pipeline_id = statistics.pipeline_id
       and (c.source_id, c.document_id) > (statistics.weighed_source_id, statistics.weighed_document_id)
     group by 1, 2
     order by 1, 2
     limit 100
  loop
    -- A worker that stores a document reads the average length after it has locked the document. So the chunks of one
    -- that is locked may still get the former weights: it has to be waited for, but not here.
    perform from rag.documents d
      where d.source_id = _document.source_id and d.document_id = _document.document_id
        for no key update skip locked;
    if not found and exists (select from rag.documents d
                              where d.source_id = _document.source_id and d.document_id = _document.document_id) then
      update rag._pipeline_statistics s
         set weighed_source_id = statistics.weighed_source_id, weighed_document_id = statistics.weighed_document_id
       where s.pipeline_id = statistics.pipeline_id;
      return false;
    end if;
    update rag.document_chunks c
       set content_bm25 = rag._bm25_weights(c.content_tsv, c.text_search_config, statistics.average_length)
     where c.pipeline_id = statistics.pipeline_id and c.source_id = _document.source_id and c.document_id = _document.document_id;
    statistics.weighed_source_id := _document.source_id;
    statistics.weighed_document_id := _document.document_id;
    _count := _count + 1;
  end loop;
  if _count < 100 then
    statistics.weighed_source_id := null;
    statistics.weighed_document_id := null;
  end if;
  update rag._pipeline_statistics s
     set weighed_source_id = statistics.weighed_source_id, weighed_document_id = statistics.weighed_document_id
   where s.pipeline_id = statistics.pipeline_id;
  return _count = 100;
end
$plpgsql$;
comment on function rag._weigh_anew(rag._pipeline_statistics) is
  'computes the BM25 weights of the next 100 documents with the average length as it is now; returns whether there are more that can be'
  ' done at once';

create or replace function rag._refresh_statistics() returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _statistics rag._pipeline_statistics;
  _chunks     bigint;
  _average    real;
  _taken      bigint;
  _more       boolean;
begin
  -- One at a time: folding is what would make a few common lexemes hot rows.
  if not pg_try_advisory_xact_lock(rag._lock_class(), 0) then
    return false;
  end if;
  with taken as (
    delete from rag._lexeme_changes c
     where c.ctid = any (array(select l.ctid from rag._lexeme_changes l limit 5000))
    returning c.*
  ), lexemes as (
    select t.pipeline_id, u.lexeme, t.text_search_config, sum(t.sign) as chunks, sum(t.sign * cardinality(u.positions)) as occurrences
      from taken t, unnest(t.content_tsv) u
     group by 1, 2, 3
  ), counted as (
    select l.* from lexemes l
    union all
    select t.pipeline_id, '', t.text_search_config, t.chunks,
           coalesce((select sum(l.occurrences) from lexemes l
                     where l.pipeline_id = t.pipeline_id and l.text_search_config = t.text_search_config
                       and not starts_with(l.lexeme, '~')), 0)
      from (select t.pipeline_id, t.text_search_config, sum(t.sign) as chunks from taken t group by 1, 2) t
  ), folded as (
    insert into rag._lexemes as l (pipeline_id, lexeme, text_search_config, chunks, occurrences)
    select c.* from counted c where (c.chunks, c.occurrences) <> (0, 0)
    on conflict on constraint _lexemes_pkey do update
      set chunks = l.chunks + excluded.chunks, occurrences = l.occurrences + excluded.occurrences
  )
  select count(*) into _taken from taken;
  _more := _taken = 5000;
  perform rag._analyze_grown_tables();

  for _statistics in select * from rag._pipeline_statistics order by pipeline_id loop
    select sum(l.chunks), greatest(sum(l.occurrences)::real / nullif(sum(l.chunks), 0), 1) into _chunks, _average
    from rag._lexemes l where l.pipeline_id = _statistics.pipeline_id and l.lexeme = '';

    -- The sample is drawn anew each time the corpus has doubled or halved.
    if _chunks > 0 and (_chunks >= 2 * _statistics.background_chunks or 2 * _chunks < _statistics.background_chunks) then
      with drawn as materialized (
        select row_number() over () as place, d.embedding
        from (select c.embedding
              from rag.document_chunks c
              where c.pipeline_id = _statistics.pipeline_id and random() < 2048.0 / _chunks
              order by random()
              limit 256) d
      ), removed as (
        delete from rag._background b
        where b.pipeline_id = _statistics.pipeline_id and b.place > (select count(*) from drawn)
      )
      insert into rag._background as b (pipeline_id, place, embedding)
      select _statistics.pipeline_id, d.place, d.embedding from drawn d
      on conflict on constraint _background_pkey do update set embedding = excluded.embedding;
      update rag._pipeline_statistics s set background_chunks = _chunks where s.pipeline_id = _statistics.pipeline_id;
    end if;

    -- The stored weights contain the average length as it was then. They are computed anew when it is off by more than a
    -- sixth, while there are few. The chunks themselves are counted: after a few large documents many more are stored
    -- than have come into the statistics.
    if _chunks >= 64 and abs(_average / _statistics.average_length - 1) > 1.0 / 6 then
      update rag._pipeline_statistics s
         set average_length = _average,
             weighed_source_id = case when t.are_few then 0 end, weighed_document_id = case when t.are_few then 0 end
        from (select count(*) <= 20000 as are_few
                from (select from rag.document_chunks c where c.pipeline_id = _statistics.pipeline_id limit 20001) c) t
       where s.pipeline_id = _statistics.pipeline_id
      returning s.* into _statistics;
    end if;
    if _statistics.weighed_document_id is not null then
      _more := rag._weigh_anew(_statistics) or _more;
    end if;
  end loop;
  return _more;
end
$plpgsql$;
comment on function rag._refresh_statistics() is
  'brings document frequencies, average length and background sample up to date with the chunks, up to 5,000 changes and 100 documents at'
  ' once, and returns whether there is more to do; does nothing while another session is at it';

create or replace function rag._fold_statistics() returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _before bigint;
  _after  bigint;
begin
  select count(*) into _before from rag._lexeme_changes;
  perform rag._refresh_statistics();
  select count(*) into _after from rag._lexeme_changes;
  return greatest(_before - _after, 0);
end
$plpgsql$;
comment on function rag._fold_statistics() is 'brings the statistics of text search up to date; returns how many chunks were counted';
