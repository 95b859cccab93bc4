-- Text analysis: from a text and its language to lexemes and BM25 weights, the same way for passages
-- and for questions.

create or replace function rag._language_configs()
  returns table (code text, text_search_config text)
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  values
    ('ar', 'arabic'), ('ca', 'catalan'), ('da', 'danish'), ('de', 'german'), ('el', 'greek'), ('en', 'english'), ('es', 'spanish'),
    ('et', 'estonian'), ('eu', 'basque'), ('fi', 'finnish'), ('fr', 'french'), ('ga', 'irish'), ('hi', 'hindi'), ('hu', 'hungarian'),
    ('hy', 'armenian'), ('id', 'indonesian'), ('it', 'italian'), ('lt', 'lithuanian'), ('nb', 'norwegian'), ('ne', 'nepali'),
    ('nl', 'dutch'), ('nn', 'norwegian'), ('no', 'norwegian'), ('pl', 'polish'), ('pt', 'portuguese'), ('ro', 'romanian'),
    ('ru', 'russian'), ('sr', 'serbian'), ('sv', 'swedish'), ('ta', 'tamil'), ('tr', 'turkish'), ('yi', 'yiddish')
$sql$;
comment on function rag._language_configs() is 'languages by ISO 639-1 code that PostgreSQL has, or is to have, a text search configuration for';

create or replace function rag._language_code(language text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  select coalesce((select l.code from rag._language_configs() l where l.text_search_config = g.language and l.code not in ('nb', 'nn')),
                  (select n.code
                   from (values ('ja', 'japanese'), ('ko', 'korean'), ('ms', 'malay'), ('th', 'thai'), ('vi', 'vietnamese'), ('zh', 'chinese')) n (code, name)
                   where n.name = g.language),
                  nullif(g.language, ''))
  from (select lower(regexp_replace(btrim(_language_code.language), '\s*[-_(].*', '')) as language) g
$sql$;
comment on function rag._language_code(text) is 'en for en-US, en_GB, EN and English';

create or replace function rag._text_search_config(language text, fallback text) returns text
  language sql stable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The name of a configuration will do, too.
  select case
    when _text_search_config.language is null then fallback
    else coalesce((select c.cfgname::text from pg_ts_config c
                   where c.cfgnamespace = 'pg_catalog'::regnamespace
                     and c.cfgname in (_text_search_config.language,
                                       (select l.text_search_config from rag._language_configs() l where l.code = _text_search_config.language))),
                  'simple')
  end
$sql$;
comment on function rag._text_search_config(text, text) is 'text search configuration for a language: its own where there is one, else simple; the fallback where the language is not known';

create or replace function rag._normalized(content text) returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if octet_length(content) = length(content) or getdatabaseencoding() <> 'UTF8' then
    return content;
  end if;
  -- Ligatures from PDFs, full-width letters and letters with separate accents become plain ones, and so
  -- does a hyphen from Word. Spaces without width divide words, hyphens that show only at a line's end do not.
  return translate(normalize(content, NFKC), chr(8208) || chr(8203) || chr(65279) || chr(173), '-  ');
end
$plpgsql$;
comment on function rag._normalized(text) is 'a text with one way of writing what can be written in several';

create or replace function rag._divided(content text, gap text default ' ') returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if content !~ '[[:alnum:]][-/_@:.~]+[[:alnum:]]|[/~][[:alnum:]]' then
    return content;
  end if;
  -- The default parser would take TCP/IP for a file, ends.Next for a host, INV-2024-0815 for INV and two
  -- negative numbers. It keeps 3.14, 2.3.1 and well-known. Nothing here looks behind: that would begin at
  -- the start of the text for each match.
  return regexp_replace(regexp_replace(content, '\m[vV](?=\d+\.\d)', '\&' || gap, 'g'),
    '[[:alnum:]](?:[/_@:~]|[/_@:.~]{2,})(?=[[:alnum:]])|[[:alpha:]]\d*\.(?=[[:alnum:]])|\d\.(?=[[:alpha:]])'
    '|[[:alnum:]]-(?=[[:alnum:]]*\d)|\d[[:alpha:]]*-(?=[[:alnum:]])|(?:^|[^[:alnum:]<])[./~]*/(?=[[:alnum:]])|~(?=[[:alnum:]])',
    '\&' || gap, 'g');
end
$plpgsql$;
comment on function rag._divided(text, text) is 'a text with a gap between the words of codes, paths, addresses and the like, so that the text search parser sees each';

create or replace function rag._bigrams(content text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Thai, Lao, Myanmar, Khmer, kana, Han, Hangul; signs above and below a letter stay with it.
  select string_agg(case when u.letter is null then u.other
                         when u.next is not null then ' ' || u.letter || u.next || ' '
                         when u.previous is null then ' ' || u.letter || ' ' end, '' order by u.place)
  from (select m[1] as letter, m[2] as other, r.place, lead(m[1]) over (order by r.place) as next, lag(m[1]) over (order by r.place) as previous
        from regexp_matches(content, format('([%1$s][%2$s]*)|([^%1$s]+)',
               '\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1100-\u11ff\u1780-\u17d3'
               '\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U000323af',
               '\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u17b4-\u17d3\u3099\u309a'), 'g')
             with ordinality as r (m, place)) u
$sql$;
comment on function rag._bigrams(text) is 'a text whose scripts without spaces between words are written as overlapping pairs of letters, with spaces; a letter alone stays so';

create or replace function rag._parsable(content text) returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _text text := rag._divided(content);
begin
  if octet_length(_text) > length(_text) and getdatabaseencoding() = 'UTF8' and _text ~ '[\u0e00-\u11ff\u1780-\u17ff\u3000-\U0003ffff]' then
    _text := rag._bigrams(_text);
  end if;
  return _text;
end
$plpgsql$;
comment on function rag._parsable(text) is 'a text in the form in which the text search parser sees its words';

create or replace function rag._without_accents(content text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The core's normalization and not the extension unaccent: what a text is found by must not
  -- depend on what else is installed.
  select case when octet_length(content) = length(content) or getdatabaseencoding() <> 'UTF8' then content
              else replace(replace(replace(replace(replace(replace(
                     translate(normalize(regexp_replace(normalize(content, NFD), '[\u0300-\u036f]+', '', 'g'), NFC), 'đĐøØłŁħĦ', 'dDoOlLhH'),
                     'œ', 'oe'), 'Œ', 'OE'), 'æ', 'ae'), 'Æ', 'AE'), 'ß', 'ss'), 'ẞ', 'SS') end
$sql$;
comment on function rag._without_accents(text) is 'Latin, Greek and Cyrillic letters without their accents, ligatures as two letters; other scripts as they are';

create or replace function rag._codes(content text) returns text[]
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Words with hyphens and numbers with points are the parser's own.
  select array_agg(distinct lower(m[1]))
  from regexp_matches(content, '[[:alnum:]]+(?:(?:[-/_@.]|::?)[[:alnum:]]+)+', 'g') m
  where m[1] !~ '^(?:[[:alpha:]-]+|[\d.]+)$' and length(m[1]) <= 200
$sql$;
comment on function rag._codes(text) is 'invoice numbers, part codes, dates, paths, addresses and the like in a text, each as a whole';

create or replace function rag._analyze(content text, text_search_config text, is_question boolean default false) returns tsvector
  language plpgsql stable parallel safe
  set search_path = pg_catalog, pg_temp
  -- A word too long for an index is nothing that a client could do anything about.
  set client_min_messages = 'warning'
as $plpgsql$
declare
  _config  regconfig := text_search_config::regconfig;
  _whole   text      := rag._normalized(content);
  _text    text      := rag._parsable(_whole);
  _tsv     tsvector  := to_tsvector(_config, _text);
  _folded  text      := rag._without_accents(_text);
  _marked  tsvector;
begin
  -- The text form merges lexemes by position, where || would append. A passage has its words with
  -- accents also without, marked by ~; only a question without accents asks for those. Who types them
  -- means them: in Vietnamese they tell words apart.
  if (_folded <> _text) <> is_question then
    _marked := regexp_replace(to_tsvector(_config, _folded)::text, '(^| )''', '\1''~', 'g')::tsvector;
    if not is_question then
      _marked := ts_delete(_marked, array(select '~' || l from unnest(tsvector_to_array(_tsv)) l));
    end if;
    _tsv := (_tsv::text || ' ' || _marked::text)::tsvector;
  end if;
  if _text <> _whole then
    -- In the last place there is, where no phrase passes by.
    _tsv := (_tsv::text || ' ' || coalesce((select string_agg(format('''%s'':16383', c), ' ') from unnest(rag._codes(_whole)) c), ''))::tsvector;
  end if;
  return _tsv;
end
$plpgsql$;
comment on function rag._analyze(text, text, boolean) is 'lexemes of a passage or a question by a text search configuration; codes also as a whole, words with accents also without (marked by ~)';

create or replace function rag._lexeme_index(lexeme text, text_search_config text) returns integer
  language sql immutable strict parallel safe
  -- hashtext() is not promised to be the same in the next version; md5 is. 28 bits: from 1 to 2^28.
  -- By configuration: a stop word of one language must not weigh as a rare word of another.
  -- The body is bound to its functions when it is made and has no search path to set, so that it can
  -- be inlined: called for every lexeme of every chunk.
  return ('x' || left(md5(text_search_config || ' ' || lexeme), 7))::bit(28)::integer + 1;
comment on function rag._lexeme_index(text, text) is 'position of a lexeme in BM25 vectors, from 1 to 2^28';

create or replace function rag._bm25_weights(content_tsv tsvector, text_search_config text, average_length real) returns sparsevec
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- tf · (k1 + 1) / (tf + k1 · (1 − b + b · length / average)), k1 = 1.2, b = 0.75: Robertson and
  -- Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.
  return (
    select '{' || coalesce(string_agg(w.index || ':' || w.weight, ',' order by w.index), '') || '}/268435456'
    from (
      select rag._lexeme_index(t.lexeme, text_search_config) as index,
             max((t.tf * 2.2 / (t.tf + 1.2 * (0.25 + 0.75 * t.length / average_length)))::real) as weight
      from (select u.lexeme, cardinality(u.positions)::real as tf, sum(cardinality(u.positions)) filter (where not starts_with(u.lexeme, '~')) over () as length
            from unnest(content_tsv) u) t
      group by 1
    ) w
  );
end
$plpgsql$;
comment on function rag._bm25_weights(tsvector, text, real) is 'BM25 weight of every lexeme of a chunk, without its idf';

------------------------------------------------------------------------------------------------
-- Questions
------------------------------------------------------------------------------------------------

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
comment on function rag._parse_query(text) is 'takes a question apart as people type them: plain is what ranks, required each "exact phrase" (with its alternatives by or), excluded what stands behind a minus sign';

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
comment on function rag._text_search_configs(rag.pipelines) is 'text search configurations of a pipeline''s chunks, in each of which a question is analysed';

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
comment on function rag._phrase(text, text) is 'words one after another, in a language; a code as a whole or by its words; null where all are stop words';

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
comment on function rag._in_any_language(text, text[]) is 'a phrase in each of the languages, null where it is all stop words in all; undecided are those in which it is, where there is no telling whether it is in a passage';

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
comment on function rag._text_condition(text[], text, text[]) is 'what a passage must match, null where that is nothing; a notice says what is ignored';

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
comment on function rag._foreign_stop_words(text, text[]) is 'where in a question words stand that are stop words in some language, for each language in which they shall not be asked for; none where there are no other words';

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
comment on function rag._query_lexemes(text, rag.pipelines) is 'lexemes of a query in each language in use, how often each is in it, in how many chunks of the language it occurs, and its inverse document frequency there';
