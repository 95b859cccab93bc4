-- Statistics of the corpus that searches rank by: document frequencies, average length, a sample of vectors.

create or replace function rag._refresh_statistics() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _statistics rag._pipeline_statistics;
  _chunks     bigint;
  _average    real;
begin
  -- One at a time: folding is what would make a few common lexemes hot rows.
  if not pg_try_advisory_xact_lock(rag._lock_class(), 0) then
    return;
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
  )
  insert into rag._lexemes as l (pipeline_id, lexeme, text_search_config, chunks, occurrences)
  select c.* from counted c where (c.chunks, c.occurrences) <> (0, 0)
  on conflict on constraint _lexemes_pkey do update
    set chunks = l.chunks + excluded.chunks, occurrences = l.occurrences + excluded.occurrences;

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

    -- The stored weights hold the average length as it was: they are made anew when it is off by more
    -- than a sixth, while that is cheap. How many there are is counted: after a few large documents many
    -- more are stored than have come into the statistics.
    if _chunks >= 64 and abs(_average / _statistics.average_length - 1) > 1.0 / 6 then
      update rag._pipeline_statistics s set average_length = _average where s.pipeline_id = _statistics.pipeline_id;
      if (select count(*) from (select from rag.document_chunks c where c.pipeline_id = _statistics.pipeline_id limit 20001) c) <= 20000 then
        update rag.document_chunks c set content_bm25 = rag._bm25_weights(c.content_tsv, c.text_search_config, _average)
        where c.pipeline_id = _statistics.pipeline_id;
      end if;
    end if;
  end loop;
end
$plpgsql$;
comment on function rag._refresh_statistics() is
  'brings document frequencies, average length and background sample up to date with the chunks, up to 5,000 changes at once; does nothing'
  ' while another session is at it';

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
