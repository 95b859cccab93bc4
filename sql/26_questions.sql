-- Questions: each is parsed once, into words, phrases and exclusions. Conditions and weights are made of those.

create or replace function rag._parse_query(query_text text, out plain text, out required text[], out excluded text)
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _excluding constant text := '(^|\s)[-−–]("[^"]+"|[[:alpha:]][^\s"]*)';
  _term      constant text := '(?:"[^"]+"|[^\s"]+)';
  _rest      text;
begin
  -- The model reads only the beginning of a long text, so the words are taken from there too.
  query_text := left(query_text, 10000);
  -- Phones and word processors write curly and angle quotes, and spaces of other widths.
  query_text := translate(query_text, '“”„‟«»＂', repeat('"', 7));
  if octet_length(query_text) > length(query_text) and getdatabaseencoding() = 'UTF8' then
    query_text := regexp_replace(query_text, '[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]', ' ', 'g');
  end if;
  plain := query_text;
  if query_text !~ '"|(^|\s)[-−–]' then
    return;
  end if;
  _rest := regexp_replace(query_text, _excluding, '\1', 'g');
  if _rest !~ '[[:alnum:]]' then
    -- There are only exclusions. The question is then the text itself, such as --verbose.
    return;
  end if;
  select string_agg(m[2], ' or ') into excluded from regexp_matches(query_text, _excluding, 'g') m;
  select array_agg(m[1]) into required
  from regexp_matches(_rest, format('((?:%1$s\s+or\s+)*"[^"]+"(?:\s+or\s+%1$s)*)', _term), 'gi') m
  where m[1] ~ '[[:alnum:]]';
  plain := btrim(replace(_rest, '"', ' '));
end
$plpgsql$;
comment on function rag._parse_query(text) is
  'parses a question, of which the first 10,000 characters count: plain is the text that ranks, required has each "exact phrase" with its'
  ' alternatives (or), excluded is what follows a minus sign';

create or replace function rag._text_search_configs(pipeline rag.pipelines) returns text[]
  language plpgsql stable
  -- SECURITY DEFINER: callers cannot read the table of document frequencies. This gives out only which languages are in use.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return (
    select array(select l.text_search_config from rag._lexemes l
                 where l.pipeline_id = pipeline.pipeline_id and l.lexeme = '' and l.chunks > 0
                 union select pipeline.text_search_config order by 1));
end
$plpgsql$;
comment on function rag._text_search_configs(rag.pipelines) is
  'text search configurations of a pipeline''s chunks; a question is analysed by each of them';

create or replace function rag._phrase(phrase text, text_search_config text) returns tsquery
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _whole  constant text   := rag._normalized(phrase);
  _codes  constant text[] := rag._codes(_whole);
  _code   tsquery;
  _words  tsquery;
  _count  integer := 0;
  _last   integer;
  _next   record;
begin
  for _next in
    select p as place, rag._lexeme_query(array_agg(u.lexeme)) as words
    from unnest(rag._analyze(phrase, text_search_config, is_question => true)) u, unnest(u.positions) p
    where p < 16383 group by p order by p
  loop
    _words := coalesce(tsquery_phrase(_words, _next.words, _next.place - _last), _next.words);
    _last := _next.place;
    _count := _count + 1;
  end loop;
  -- Where a part of a code is a stop word, as in IT-2024-01, its other parts alone would match other codes too.
  if cardinality(_codes) = 1 and replace(lower(_whole), _codes[1], '') !~ '[[:alnum:]]' then
    _code := rag._lexeme_query(_codes);
    return case when _count = (select count(*) from unnest(to_tsvector('simple', rag._parsable(_whole))) u, unnest(u.positions))
                then _code || _words else _code end;
  end if;
  return _words;
end
$plpgsql$;
comment on function rag._phrase(text, text) is
  'a query for words that follow each other, in one language; a code matches as a whole or by its words; null if all are stop words';

create or replace function rag._in_any_language(phrase text, text_search_configs text[], out query tsquery, out undecided text[])
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _config text;
  _one    tsquery;
begin
  foreach _config in array text_search_configs loop
    _one := rag._phrase(phrase, _config);
    if _one is null then
      undecided := undecided || _config;
    else
      query := coalesce(query || _one, _one);
    end if;
  end loop;
end
$plpgsql$;
comment on function rag._in_any_language(text, text[]) is
  'a query for a phrase in any of the languages, null if it consists of stop words in all of them; undecided lists the languages in which'
  ' it consists of stop words: there it cannot be decided whether a passage has it';

create or replace function rag._alternatives(terms text) returns setof text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select btrim(m[1], '"')
  from regexp_matches(terms, '"[^"]+"|[^\s"]+', 'g') m
  where lower(m[1]) <> 'or' and m[1] ~ '[[:alnum:]]'
$sql$;
comment on function rag._alternatives(text) is 'the terms between or';

create or replace function rag._text_condition(question rag._question) returns tsquery
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _configs   constant text[] := array(select w.text_search_config from unnest(question.words) w);
  _condition tsquery;
  _any       tsquery;
  _terms     text;
  _term      record;
  _ignored   text[];
begin
  foreach _terms in array coalesce(question.required, '{}') loop
    _any := null;
    for _term in
      select a as phrase, f.query, f.undecided
      from rag._alternatives(_terms) a, rag._in_any_language(a, _configs) f
    loop
      if _term.query is null then
        _ignored := _ignored || format('"%s"', _term.phrase);
      else
        _any := coalesce(_any || _term.query, _term.query);
        if _term.undecided is not null then
          -- Passages of these languages pass: rag._search_filter() adds this lexeme to theirs.
          _any := _any || rag._lexeme_query(array(select '~~' || u from unnest(_term.undecided) u));
        end if;
      end if;
    end loop;
    _condition := coalesce(_condition && _any, _condition, _any);
  end loop;
  for _term in
    select a as phrase, f.query
    from rag._alternatives(question.excluded) a, rag._in_any_language(a, _configs) f
  loop
    if _term.query is null then
      _ignored := _ignored || ('-' || case when _term.phrase ~ '\s' then format('"%s"', _term.phrase) else _term.phrase end);
    else
      _condition := coalesce(_condition && !! _term.query, !! _term.query);
    end if;
  end loop;
  if _ignored is not null then
    raise notice 'ignored, because it consists of stop words: %', array_to_string(_ignored, ', ');
  end if;
  return _condition;
end
$plpgsql$;
comment on function rag._text_condition(rag._question) is
  'the query that a passage must match, null if there is no condition; a notice says what is ignored';

create or replace function rag._foreign_stop_words(query_text text, text_search_configs text[])
  returns table (text_search_config text, positions smallint[])
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
  set client_min_messages = 'warning'
as $plpgsql$
#variable_conflict use_column
begin
  if cardinality(text_search_configs) < 2 then
    return;
  end if;
  return query
  with word as (
    select u.lexeme, u.positions from unnest(to_tsvector('simple', rag._parsable(rag._normalized(query_text)))) u
  ), spoken as (
    select c.config, array_agg(w.lexeme) as stop_words, sum(cardinality(w.positions)) as count
    from unnest(text_search_configs) as c (config) cross join word w
    where to_tsvector(c.config::regconfig, w.lexeme) = ''
    group by c.config
    -- A few do not show the language: 'do' and 'an' are Vietnamese words, and an Indonesian question can name The Beatles.
    having 3 * count(*) >= (select count(*) from word)
  ), stop_word as materialized (
    select w.* from word w where w.lexeme in (select unnest(s.stop_words) from spoken s)
  ), own as (
    -- The language with the most of the stop words: 'what caused the war', with English and German in use, is English.
    -- So 'war', a German stop word, is still asked for in English.
    select case when count(*) = 1 then min(s.config) end as config
    from spoken s where s.count = (select max(m.count) from spoken m)
  )
  select c.config, (select array_agg(p) from stop_word s, unnest(s.positions) p)
  from unnest(text_search_configs) as c (config), own
  where c.config is distinct from own.config and (select count(*) from stop_word) < (select count(*) from word);
end
$plpgsql$;
comment on function rag._foreign_stop_words(text, text[]) is
  'positions of words in a question that are stop words of some language, for each language in which they must not be asked for; no rows'
  ' if the question has no other words';

create or replace function rag._parsed_question(query_text text, pipeline rag.pipelines) returns rag._question
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _configs  constant text[] := rag._text_search_configs(pipeline);
  _question rag._question;
begin
  select p.plain, p.required, p.excluded into _question.plain, _question.required, _question.excluded
  from rag._parse_query(query_text) p;
  _question.words := array(
    select row(c.config, rag._analyze(_question.plain, c.config, is_question => true), s.positions)::rag._question_words
    from unnest(_configs) as c (config)
    left join rag._foreign_stop_words(_question.plain, _configs) s on s.text_search_config = c.config);
  return _question;
end
$plpgsql$;
comment on function rag._parsed_question(text, rag.pipelines) is
  'a question parsed and analysed in each language of a pipeline; a search calls this once and passes the result on';

create or replace function rag._query_lexemes(question rag._question, pipeline rag.pipelines) returns rag._query_lexeme[]
  language plpgsql stable
  -- SECURITY DEFINER: document frequencies count all tenants, and the table of them would show which
  -- words others use. Callers cannot read it.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- idf = ln(1 + (N − n + ½) / (n + ½)), as in Lucene: never negative.
  return array(
    select row(u.lexeme, w.text_search_config, cardinality(u.positions), coalesce(l.chunks, 0),
               ln(1 + (greatest(coalesce(t.chunks, 0) - coalesce(l.chunks, 0), 0) + 0.5) / (coalesce(l.chunks, 0) + 0.5))
           )::rag._query_lexeme
    from unnest(question.words) w
    cross join lateral unnest(w.lexemes) u
    left join rag._lexemes t
      on t.pipeline_id = pipeline.pipeline_id and t.lexeme = '' and t.text_search_config = w.text_search_config
    left join rag._lexemes l
      on l.pipeline_id = pipeline.pipeline_id and l.lexeme = u.lexeme and l.text_search_config = w.text_search_config
    where w.foreign_stop_words is null or not u.positions <@ w.foreign_stop_words);
end
$plpgsql$;
comment on function rag._query_lexemes(rag._question, rag.pipelines) is
  'lexemes of a question in each language in use: how often the question has each, how many chunks of the language have it, and its inverse'
  ' document frequency there';
