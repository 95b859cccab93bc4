-- Search: the columns of a hit, among them its context and its snippet.

create or replace function rag._overlap(before text, after text, most integer) returns integer
  language plpgsql immutable strict
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _end    text    := right(before, most);
  _common text;
  _place  integer := 1;
begin
  -- If in doubt a text is repeated rather than left out. So what could be equal by chance does not count
  -- as an overlap: a single word, or the end of one word that is the beginning of another.
  loop
    _place := strpos(_end, left(after, 2));
    if _place = 0 or _end = '' then
      return 0;
    end if;
    _common := substr(_end, _place);
    exit when starts_with(after, _common) and length(_common) < least(length(before), length(after))
              and (length(_common) >= 20
                   or btrim(_common) ~ '\s'
                      and right(left(before, -length(_common)), 1) || left(_common, 1) !~ '[[:alnum:]]{2}'
                      and right(_common, 1) || substr(after, length(_common) + 1, 1) !~ '[[:alnum:]]{2}');
    _end := substr(_end, _place + 1);
  end loop;
  return length(_common);
end
$plpgsql$;
comment on function rag._overlap(text, text, integer) is
  'how many characters of the end of the first text the second one repeats, at most so many; 0 if they could be equal by chance';

create or replace function rag._context(
    pipeline rag.pipelines, source_id integer, document_id bigint, chunk_index integer, neighbours integer)
  returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with neighbour as (
    select c.chunk_index, c.content, lag(c.content) over w as before,
           -- Across sections and pages only the strategy fixed repeats text. A token rarely has more than 16 characters.
           case when pipeline.chunk_strategy = 'fixed'
                     or (c.section, c.page_number) is not distinct from (lag(c.section) over w, lag(c.page_number) over w)
                then pipeline.chunk_overlap * case pipeline.chunk_unit when 'tokens' then 16 else 1 end else 0 end as most
    from rag.document_chunks c
    where c.pipeline_id = pipeline.pipeline_id and c.source_id = _context.source_id and c.document_id = _context.document_id
      and c.chunk_index between _context.chunk_index - neighbours and _context.chunk_index + neighbours
    window w as (order by c.chunk_index)
  )
  select string_agg(case when n.before is null then n.content
                         when o.overlap > 0 then substr(n.content, o.overlap + 1)
                         else e'\n' || n.content end, '' order by n.chunk_index)
  from neighbour n cross join lateral rag._overlap(n.before, n.content, n.most) o (overlap)
$sql$;
comment on function rag._context(rag.pipelines, integer, bigint, integer, integer) is
  'a chunk with so many chunks before and after it of the same document; text that they share appears once';

create or replace function rag._html(content text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select replace(replace(replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;')
$sql$;
comment on function rag._html(text) is 'a text, escaped for HTML';

create or replace function rag._words_to_mark(content text, question rag._question, text_search_config text) returns text[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  with asked as (
    select l from unnest(tsvector_to_array(coalesce(
      (select w.lexemes from unnest(question.words) w where w.text_search_config = _words_to_mark.text_search_config),
      -- A language whose first passages are not counted yet.
      rag._analyze(question.plain, _words_to_mark.text_search_config, is_question => true)))) l
  ), there as materialized (
    select u.lexeme, u.positions from unnest(rag._analyze(_words_to_mark.content, _words_to_mark.text_search_config)) u
  )
  select array(
    select a.l from asked a
    union
    -- A word that is found without its accents has them in the passage.
    select t.lexeme from there t join there f on f.positions && t.positions
    where f.lexeme in (select a.l from asked a where starts_with(a.l, '~')) and not starts_with(t.lexeme, '~'))
$sql$;
comment on function rag._words_to_mark(text, rag._question, text) is
  'lexemes of a question, and those of a passage that they match without accents';

create or replace function rag._snippet(content text, question rag._question, text_search_config text) returns text
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  set client_min_messages = 'warning'
as $plpgsql$
declare
  -- Control characters mark places until the text is escaped, so that no markup of the document reaches the page.
  _gap     constant text := chr(1);
  _begin   constant text := chr(2);
  _end     constant text := chr(3);
  _words   text[] := rag._words_to_mark(content, question, text_search_config);
  _plain   constant text := translate(content, _gap || _begin || _end, '');
  _text    text := _plain;
  _letters text[];
begin
  if octet_length(_text) > length(_text) and getdatabaseencoding() = 'UTF8' then
    _text := normalize(_text, NFC);
    -- In scripts without spaces, words are pairs of letters, and sequences of letters in the question.
    _letters := array(select distinct r[1]
                      from regexp_matches(left(rag._normalized(question.plain), 500),
                                          '[\u0e00-\u11ff\u1780-\u17ff\u3001-\U0003ffff]{2,}', 'g') r)
             || array(select w from unnest(_words) w where w ~ '^[\u0e00-\u11ff\u1780-\u17ff\u3001-\U0003ffff]' limit 500);
    if cardinality(_letters) > 0 then
      _text := regexp_replace(_text, array_to_string(_letters, '|'), _gap || '\&' || _gap, 'g');
      _words := _words || _letters;
    end if;
  end if;
  -- The parser must not take anything for a tag or an entity.
  _text := replace(replace(rag._divided(_text, _gap), '<', '<' || _gap), '&', '&' || _gap);
  _text := ts_headline(text_search_config::regconfig, _text, rag._lexeme_query(_words),
    format('StartSel=%s, StopSel=%s, MaxFragments=2, MaxWords=30, MinWords=10, FragmentDelimiter=" … "', _begin, _end));
  _text := regexp_replace(replace(coalesce(_text, left(_plain, 200)), _gap, ''), _end || '([-/_@:.~]*)' || _begin, '\1', 'g');
  return replace(replace(rag._html(_text), _begin, '<mark>'), _end, '</mark>');
end
$plpgsql$;
comment on function rag._snippet(text, rag._question, text) is
  'HTML: the parts of a passage that have words of the question, these within <mark>';

create or replace function rag._search_results(
    hits rag._search_hit[], question rag._question, options rag._search_options, pipeline rag.pipelines)
  returns setof rag.search_result
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return query
    select h.chunk_id, c.document_id, c.content, h.similarity, h.bm25, h.score, c.page_number, c.chunk_index,
           s.name, d.source_key, d.file_path, coalesce(d.title, d.extracted ->> 'title'), c.section, c.tags, d.metadata,
           c.language, h.semantic_place, h.text_place, h.rerank_score,
           case when options.context_chunks > 0
                then rag._context(pipeline, c.source_id, c.document_id, c.chunk_index, options.context_chunks) end,
           case when options.highlight then rag._snippet(c.content, question, c.text_search_config) end
    from unnest(hits) with ordinality as h
         (chunk_id, similarity, bm25, semantic_place, text_place, score, rerank_score, place)
    join rag.document_chunks c on c.pipeline_id = pipeline.pipeline_id and c.chunk_id = h.chunk_id
    join rag.documents d on d.source_id = c.source_id and d.document_id = c.document_id
    join rag.sources s on s.source_id = c.source_id
    order by h.place;
end
$plpgsql$;
comment on function rag._search_results(rag._search_hit[], rag._question, rag._search_options, rag.pipelines) is
  'the columns of the hits, in their order';
