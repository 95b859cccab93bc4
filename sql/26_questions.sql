-- Questions: their words, phrases and exclusions, and the conditions and lexemes made of them.

create or replace function rag._parse_query(query_text text, out plain text, out required text[], out excluded text)
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _excluding constant text := '(^|\s)[-−–]("[^"]+"|[[:alpha:]][^\s"]*)';
  _term      constant text := '(?:"[^"]+"|[^\s"]+)';
  _rest      text;
begin
  -- As phones and word processors write them.
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
    -- Nothing but exclusions: --verbose is then what is looked for.
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
  'takes a question apart as people type them: plain is what ranks, required each "exact phrase" (with its alternatives by or), excluded'
  ' what stands behind a minus sign';

create or replace function rag._text_search_configs(pipeline rag.pipelines) returns text[]
  language plpgsql stable
  -- SECURITY DEFINER: the table of document frequencies is closed; which languages are in use is not told by it alone.
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
  'text search configurations of a pipeline''s chunks, in each of which a question is analysed';

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
  -- A code of which a part is a stop word, such as IT-2024-01, would be any code with the other parts.
  if cardinality(_codes) = 1 and replace(lower(_whole), _codes[1], '') !~ '[[:alnum:]]' then
    _code := rag._lexeme_query(_codes);
    return case when _count = (select count(*) from unnest(to_tsvector('simple', rag._parsable(_whole))) u, unnest(u.positions))
                then _code || _words else _code end;
  end if;
  return _words;
end
$plpgsql$;
comment on function rag._phrase(text, text) is
  'words one after another, in a language; a code as a whole or by its words; null where all are stop words';

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
  'a phrase in each of the languages, null where it is all stop words in all; undecided are those in which it is, where there is no'
  ' telling whether it is in a passage';

create or replace function rag._alternatives(terms text) returns setof text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$
  select btrim(m[1], '"')
  from regexp_matches(terms, '"[^"]+"|[^\s"]+', 'g') m
  where lower(m[1]) <> 'or' and m[1] ~ '[[:alnum:]]'
$sql$;
comment on function rag._alternatives(text) is 'what stands between or';

create or replace function rag._text_condition(required text[], excluded text, text_search_configs text[]) returns tsquery
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _condition tsquery;
  _any       tsquery;
  _terms     text;
  _term      record;
  _ignored   text[];
begin
  foreach _terms in array coalesce(required, '{}') loop
    _any := null;
    for _term in select a as phrase, f.query, f.undecided from rag._alternatives(_terms) a, rag._in_any_language(a, text_search_configs) f loop
      if _term.query is null then
        _ignored := _ignored || format('"%s"', _term.phrase);
      else
        _any := coalesce(_any || _term.query, _term.query);
        if _term.undecided is not null then
          -- Passages of these languages are let through: rag._search_filter() puts this in.
          _any := _any || rag._lexeme_query(array(select '~~' || u from unnest(_term.undecided) u));
        end if;
      end if;
    end loop;
    _condition := coalesce(_condition && _any, _condition, _any);
  end loop;
  for _term in select a as phrase, f.query from rag._alternatives(excluded) a, rag._in_any_language(a, text_search_configs) f loop
    if _term.query is null then
      _ignored := _ignored || ('-' || case when _term.phrase ~ '\s' then format('"%s"', _term.phrase) else _term.phrase end);
    else
      _condition := coalesce(_condition && !! _term.query, !! _term.query);
    end if;
  end loop;
  if _ignored is not null then
    raise notice 'ignored, as there are only stop words in it: %', array_to_string(_ignored, ', ');
  end if;
  return _condition;
end
$plpgsql$;
comment on function rag._text_condition(text[], text, text[]) is
  'what a passage must match, null where that is nothing; a notice says what is ignored';

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
    -- Few of them are no sign of the language: 'do' and 'an' are words in Vietnamese, and an Indonesian asks for The Beatles.
    having 3 * count(*) >= (select count(*) from word)
  ), stop_word as materialized (
    select w.* from word w where w.lexeme in (select unnest(s.stop_words) from spoken s)
  ), own as (
    -- The language that most of the stop words are of: what caused the war, in English and German, asks for war in English.
    select case when count(*) = 1 then min(s.config) end as config
    from spoken s where s.count = (select max(m.count) from spoken m)
  )
  select c.config, (select array_agg(p) from stop_word s, unnest(s.positions) p)
  from unnest(text_search_configs) as c (config), own
  where c.config is distinct from own.config and (select count(*) from stop_word) < (select count(*) from word);
end
$plpgsql$;
comment on function rag._foreign_stop_words(text, text[]) is
  'where in a question words stand that are stop words in some language, for each language in which they shall not be asked for; none'
  ' where there are no other words';

create or replace function rag._query_lexemes(query_text text, pipeline rag.pipelines) returns rag._query_lexeme[]
  language plpgsql stable
  -- SECURITY DEFINER: document frequencies are over all tenants, and the table of them, which would
  -- tell what words others use, stays closed.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _configs constant text[] := rag._text_search_configs(pipeline);
begin
  -- idf = ln(1 + (N − n + ½) / (n + ½)), as in Lucene: never negative.
  return array(
    select row(u.lexeme, c.config, cardinality(u.positions), coalesce(l.chunks, 0),
               ln(1 + (greatest(coalesce(t.chunks, 0) - coalesce(l.chunks, 0), 0) + 0.5) / (coalesce(l.chunks, 0) + 0.5)))::rag._query_lexeme
    from unnest(_configs) as c (config)
    cross join lateral unnest(rag._analyze(query_text, c.config, is_question => true)) u
    left join rag._foreign_stop_words(query_text, _configs) s on s.text_search_config = c.config
    left join rag._lexemes t on t.pipeline_id = pipeline.pipeline_id and t.lexeme = '' and t.text_search_config = c.config
    left join rag._lexemes l on l.pipeline_id = pipeline.pipeline_id and l.lexeme = u.lexeme and l.text_search_config = c.config
    where s.positions is null or not u.positions <@ s.positions);
end
$plpgsql$;
comment on function rag._query_lexemes(text, rag.pipelines) is
  'lexemes of a query in each language in use, how often each is in it, in how many chunks of the language it occurs, and its inverse'
  ' document frequency there';
