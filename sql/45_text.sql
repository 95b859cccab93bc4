-- Text analysis: from a text and its language to lexemes and BM25 weights, the same way for passages
-- and for questions.

create or replace function rag._language_code(language text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$ select nullif(lower(regexp_replace(btrim(language), '[-_].*', '')), '') $sql$;
comment on function rag._language_code(text) is 'en for en-US, en_GB and EN';

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

create or replace function rag._text_search_config(language text, fallback text) returns text
  language sql stable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A language given by its English name is a configuration's name already.
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

create or replace function rag._parsable(content text) returns text
  language plpgsql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _text text := content;
begin
  if octet_length(_text) > length(_text) and getdatabaseencoding() = 'UTF8' then
    -- Ligatures from PDFs, full-width letters and letters with separate accents become plain ones.
    _text := normalize(_text, NFKC);
  end if;
  -- The default parser would take INV-2024-0815 for INV and two negative numbers, AB12/34 for a file.
  return regexp_replace(_text, '(?<=[[:alnum:]])[-/_](?=[[:alnum:]]*\d)|(?<=\d[[:alpha:]]*)[-/_](?=[[:alnum:]])', ' ', 'g');
end
$plpgsql$;
comment on function rag._parsable(text) is 'a text in the form in which the text search parser sees the parts of codes and numbers';

create or replace function rag._without_accents(content text) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  -- The core's normalization and not the extension unaccent: what a text is found by must not
  -- depend on what else is installed.
  select case when octet_length(content) = length(content) or getdatabaseencoding() <> 'UTF8' then content
              else translate(regexp_replace(normalize(content, NFD), '[\u0300-\u036f]', '', 'g'), 'đĐøØłŁħĦ', 'dDoOlLhH') end
$sql$;
comment on function rag._without_accents(text) is 'Latin, Greek and Cyrillic letters without their accents; other scripts as they are';

create or replace function rag._codes(content text) returns text[]
  language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $sql$
  select array_agg(distinct lower(m[1]))
  from regexp_matches(content, '((?:[[:alnum:]]+[-/_])+[[:alnum:]]+)', 'g') m
  where m[1] ~ '\d' and length(m[1]) <= 100
$sql$;
comment on function rag._codes(text) is 'invoice numbers, part codes, dates and the like in a text, each as a whole';

create or replace function rag._analyze(content text, text_search_config text, is_question boolean default false) returns tsvector
  language plpgsql stable parallel safe
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _config  regconfig := text_search_config::regconfig;
  _text    text      := rag._parsable(content);
  _tsv     tsvector  := to_tsvector(_config, _text);
  _folded  text      := rag._without_accents(_text);
  _marked  tsvector;
  _codes   text[];
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
  if content ~ '\d[-/_]|[-/_]\d' then
    _codes := rag._codes(content);
    -- In the last place there is, where no phrase passes by.
    _tsv := (_tsv::text || ' ' || coalesce((select string_agg(format('''%s'':16383', c), ' ') from unnest(_codes) c), ''))::tsvector;
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
  _excluding constant text := '(^|\s)-("[^"]+"|[[:alpha:]][^\s"]*)';
  _term      constant text := '(?:"[^"]+"|[^\s"]+)';
  _rest      text;
begin
  plain := query_text;
  if query_text !~ '"|(^|\s)-' then
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

create or replace function rag._text_condition(required text[], excluded text, text_search_configs text[]) returns tsquery
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _condition tsquery;
  _terms     tsquery;
  _term      text;
begin
  foreach _term in array coalesce(required, '{}') loop
    _terms := rag._in_any_language(_term, text_search_configs);
    _condition := coalesce(_condition && _terms, _condition, _terms);
  end loop;
  _terms := !! rag._in_any_language(excluded, text_search_configs);
  return coalesce(_condition && _terms, _condition, _terms);
end
$plpgsql$;
comment on function rag._text_condition(text[], text, text[]) is 'what a passage must match, null where that is nothing';

create or replace function rag._in_any_language(terms text, text_search_configs text[]) returns tsquery
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _any    tsquery;
  _one    tsquery;
  _config text;
begin
  foreach _config in array text_search_configs loop
    _one := websearch_to_tsquery(_config::regconfig, rag._parsable(terms));
    -- Stop words alone: in that language there is no telling where they stand.
    if numnode(_one) = 0 then
      return null;
    end if;
    if rag._without_accents(terms) = terms then
      _one := regexp_replace(_one::text, '''((?:[^'']|'''')+)''', '( ''\1'' | ''~\1'' )', 'g')::tsquery;
    end if;
    _any := coalesce(_any || _one, _one);
  end loop;
  return _any;
end
$plpgsql$;
comment on function rag._in_any_language(text, text[]) is 'phrases and words as people type them, in each of the languages; null where they are all stop words in one of them';

create or replace function rag._query_lexemes(query_text text, pipeline rag.pipelines)
  returns table (lexeme text, text_search_config text, occurrences integer, chunks bigint, idf real)
  language plpgsql stable
  -- SECURITY DEFINER: document frequencies are over all tenants, and the table of them, which would
  -- tell what words others use, stays closed.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
#variable_conflict use_column
begin
  -- idf = ln(1 + (N − n + ½) / (n + ½)), as in Lucene: never negative.
  return query
    select u.lexeme, c.config, cardinality(u.positions), coalesce(l.chunks, 0),
           ln(1 + (greatest(coalesce(t.chunks, 0) - coalesce(l.chunks, 0), 0) + 0.5) / (coalesce(l.chunks, 0) + 0.5))::real
    from unnest(rag._text_search_configs(pipeline)) as c (config)
    cross join lateral unnest(rag._analyze(query_text, c.config, is_question => true)) u
    left join rag._lexemes t on t.pipeline_id = pipeline.pipeline_id and t.lexeme = '' and t.text_search_config = c.config
    left join rag._lexemes l on l.pipeline_id = pipeline.pipeline_id and l.lexeme = u.lexeme and l.text_search_config = c.config;
end
$plpgsql$;
comment on function rag._query_lexemes(text, rag.pipelines) is 'lexemes of a query in each language in use, how often each is in it, in how many chunks of the language it occurs, and its inverse document frequency there';
