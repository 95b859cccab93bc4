-- Text analysis: makes lexemes and BM25 weights of a text in a language. Passages and questions are
-- analysed alike.

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
comment on function rag._language_configs() is
  'languages by ISO 639-1 code for which this or a later PostgreSQL has a text search configuration';

create or replace function rag._language_code(language text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  select coalesce((select l.code from rag._language_configs() l where l.text_search_config = g.language and l.code not in ('nb', 'nn')),
                  (select n.code
                   from (values ('ja', 'japanese'), ('ko', 'korean'), ('ms', 'malay'),
                                ('th', 'thai'), ('vi', 'vietnamese'), ('zh', 'chinese')) n (code, name)
                   where n.name = g.language),
                  nullif(g.language, ''))
  from (select lower(regexp_replace(btrim(_language_code.language), '\s*[-_(].*', '')) as language) g
$sql$;
comment on function rag._language_code(text) is 'the code of a language: en for en-US, en_GB, EN and English';

create or replace function rag._text_search_config(language text, fallback text) returns text
  language sql stable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The name of a configuration is accepted too.
  select case
    when _text_search_config.language is null then fallback
    else coalesce((select c.cfgname::text from pg_ts_config c
                   where c.cfgnamespace = 'pg_catalog'::regnamespace
                     and c.cfgname in (_text_search_config.language,
                                       (select l.text_search_config
                                        from rag._language_configs() l where l.code = _text_search_config.language))),
                  'simple')
  end
$sql$;
comment on function rag._text_search_config(text, text) is
  'the text search configuration for a language: its own, or simple if it has none; the fallback if the language is not known';

create or replace function rag._normalized(content text) returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if octet_length(content) = length(content) or getdatabaseencoding() <> 'UTF8' then
    return content;
  end if;
  -- NFKC replaces ligatures from PDFs, full-width letters, and letters with separate accents. The hyphen
  -- of Word becomes a plain one, a zero-width space becomes a space, and a soft hyphen is removed.
  return translate(normalize(content, NFKC), chr(8208) || chr(8203) || chr(65279) || chr(173), '-  ');
end
$plpgsql$;
comment on function rag._normalized(text) is 'a text in which letters that can be encoded in several ways have one encoding';

create or replace function rag._divided(content text, gap text default ' ') returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if content !~ '[[:alnum:]][-/_@:.~]+[[:alnum:]]|[/~][[:alnum:]]' then
    return content;
  end if;
  -- The default parser takes TCP/IP for a file name, ends.Next for a host, and INV-2024-0815 for INV and two
  -- negative numbers. 3.14, 2.3.1 and well-known stay as they are. The patterns have no lookbehind: it
  -- would scan from the start of the text for each match.
  return regexp_replace(regexp_replace(content, '\m[vV](?=\d+\.\d)', '\&' || gap, 'g'),
    '[[:alnum:]](?:[/_@:~]|[/_@:.~]{2,})(?=[[:alnum:]])|[[:alpha:]]\d*\.(?=[[:alnum:]])|\d\.(?=[[:alpha:]])'
    '|[[:alnum:]]-(?=[[:alnum:]]*\d)|\d[[:alpha:]]*-(?=[[:alnum:]])|(?:^|[^[:alnum:]<])[./~]*/(?=[[:alnum:]])|~(?=[[:alnum:]])',
    '\&' || gap, 'g');
end
$plpgsql$;
comment on function rag._divided(text, text) is
  'a text with gaps between the words of codes, paths, addresses and the like, so that the text search parser sees each word';

create or replace function rag._bigrams(content text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The first class has the letters of Thai, Lao, Myanmar, Khmer, kana, Han and Hangul; the second the
  -- signs that belong to the letter before them.
  select string_agg(case when u.letter is null then u.other
                         when u.next is not null then ' ' || u.letter || u.next || ' '
                         when u.previous is null then ' ' || u.letter || ' ' end, '' order by u.place)
  from (select m[1] as letter, m[2] as other, r.place,
               lead(m[1]) over (order by r.place) as next, lag(m[1]) over (order by r.place) as previous
        from regexp_matches(content, format('([%1$s][%2$s]*)|([^%1$s]+)',
               '\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1100-\u11ff\u1780-\u17d3'
               '\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3'
               '\uf900-\ufaff\U00020000-\U000323af',
               '\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1060\u1062-\u1064'
               '\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u17b4-\u17d3\u3099\u309a'), 'g')
             with ordinality as r (m, place)) u
$sql$;
comment on function rag._bigrams(text) is
  'a text in which scripts without spaces between words are written as overlapping pairs of letters, with spaces between the pairs; a'
  ' single letter stays alone';

create or replace function rag._parsable(content text) returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _text text := rag._divided(content);
begin
  if octet_length(_text) > length(_text) and getdatabaseencoding() = 'UTF8'
     and _text ~ '[\u0e00-\u11ff\u1780-\u17ff\u3000-\U0003ffff]' then
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
  -- This uses the core's normalization and not the extension unaccent, so that results do not depend on
  -- what else is installed.
  select case when octet_length(content) = length(content) or getdatabaseencoding() <> 'UTF8' then content
              else replace(replace(replace(replace(replace(replace(
                     translate(normalize(regexp_replace(normalize(content, NFD), '[\u0300-\u036f]+', '', 'g'), NFC),
                               'đĐøØłŁħĦ', 'dDoOlLhH'),
                     'œ', 'oe'), 'Œ', 'OE'), 'æ', 'ae'), 'Æ', 'AE'), 'ß', 'ss'), 'ẞ', 'SS') end
$sql$;
comment on function rag._without_accents(text) is
  'a text in which Latin, Greek and Cyrillic letters have no accents and ligatures are two letters; other scripts stay as they are';

create or replace function rag._codes(content text) returns text[]
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Words with hyphens and numbers with points are left out, because the parser keeps these whole.
  select array_agg(distinct lower(m[1]))
  from regexp_matches(content, '[[:alnum:]]+(?:(?:[-/_@.]|::?)[[:alnum:]]+)+', 'g') m
  where m[1] !~ '^(?:[[:alpha:]-]+|[\d.]+)$' and length(m[1]) <= 200
$sql$;
comment on function rag._codes(text) is 'invoice numbers, part codes, dates, paths, addresses and the like in a text, each as a whole';

create or replace function rag._analyze(content text, text_search_config text, is_question boolean default false) returns tsvector
  language plpgsql stable parallel safe
  set search_path = pg_catalog, pg_temp
  -- This hides the notice about a word that is too long to be indexed.
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
  -- A passage has each word with accents also without them, marked by ~. A question asks for these only
  -- if it has no accents itself: in Vietnamese accents distinguish words. Lexemes are merged in their
  -- text form because || would shift the positions.
  if (_folded <> _text) <> is_question then
    _marked := regexp_replace(to_tsvector(_config, _folded)::text, '(^| )''', '\1''~', 'g')::tsvector;
    if not is_question then
      _marked := ts_delete(_marked, array(select '~' || l from unnest(tsvector_to_array(_tsv)) l));
    end if;
    _tsv := (_tsv::text || ' ' || _marked::text)::tsvector;
  end if;
  if _text <> _whole then
    -- Whole codes stand at the last possible position, so that they do not disturb phrases.
    _tsv := (_tsv::text || ' ' || coalesce((select string_agg(format('''%s'':16383', c), ' ')
                                            from unnest(rag._codes(_whole)) c), ''))::tsvector;
  end if;
  return _tsv;
end
$plpgsql$;
comment on function rag._analyze(text, text, boolean) is
  'lexemes of a passage or a question by a text search configuration; codes also appear as a whole, and words with accents also without'
  ' them (marked by ~)';

create or replace function rag._lexeme_index(lexeme text, text_search_config text) returns integer
  language sql immutable strict parallel safe
  -- md5 and not hashtext(), whose results may change with the version of PostgreSQL. 28 bits: 1 to 2^28.
  -- The configuration is included so that a stop word of one language does not weigh as a rare word of
  -- another. The body is bound to its functions when it is created and needs no search path, so it can be
  -- inlined: it is called for every lexeme of every chunk.
  return ('x' || left(md5(text_search_config || ' ' || lexeme), 7))::bit(28)::integer + 1;
comment on function rag._lexeme_index(text, text) is 'position of a lexeme in BM25 vectors, from 1 to 2^28';

create or replace function rag._bm25_weights(content_tsv tsvector, text_search_config text, average_length real) returns sparsevec
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
  -- As in rag._query_weights().
  set extra_float_digits = '1'
as $plpgsql$
begin
  -- tf · (k1 + 1) / (tf + k1 · (1 − b + b · length / average)), k1 = 1.2, b = 0.75: Robertson and
  -- Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.
  return (
    select '{' || coalesce(string_agg(w.index || ':' || w.weight, ',' order by w.index), '') || '}/268435456'
    from (
      select rag._lexeme_index(t.lexeme, text_search_config) as index,
             max((t.tf * 2.2 / (t.tf + 1.2 * (0.25 + 0.75 * t.length / average_length)))::real) as weight
      from (select u.lexeme, cardinality(u.positions)::real as tf,
                   sum(cardinality(u.positions)) filter (where not starts_with(u.lexeme, '~')) over () as length
            from unnest(content_tsv) u) t
      group by 1
    ) w
  );
end
$plpgsql$;
comment on function rag._bm25_weights(tsvector, text, real) is 'the BM25 weight of each lexeme of a chunk, without its idf';
