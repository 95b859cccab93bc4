-- Where a pipeline had chunks and no lexeme in any of them, this was 0, which weights are divided by.
update rag._pipeline_statistics s set average_length = 1 where s.average_length < 1;
alter table rag._pipeline_statistics add constraint average_length_divides check (average_length >= 1);

-- Since 0.2.0 a language that a source calls by its English name is stored by its code.
update rag.document_chunks c set language = l.code
from (values
    ('arabic', 'ar'), ('armenian', 'hy'), ('basque', 'eu'), ('catalan', 'ca'), ('chinese', 'zh'), ('danish', 'da'), ('dutch', 'nl'),
    ('english', 'en'), ('estonian', 'et'), ('finnish', 'fi'), ('french', 'fr'), ('german', 'de'), ('greek', 'el'), ('hindi', 'hi'), ('hungarian', 'hu'),
    ('indonesian', 'id'), ('irish', 'ga'), ('italian', 'it'), ('japanese', 'ja'), ('korean', 'ko'), ('lithuanian', 'lt'), ('malay', 'ms'),
    ('nepali', 'ne'), ('norwegian', 'no'), ('polish', 'pl'), ('portuguese', 'pt'), ('romanian', 'ro'), ('russian', 'ru'), ('serbian', 'sr'),
    ('spanish', 'es'), ('swedish', 'sv'), ('tamil', 'ta'), ('thai', 'th'), ('turkish', 'tr'), ('vietnamese', 'vi'), ('yiddish', 'yi')) l (name, code)
where c.language = l.name;

-- Functions that have other arguments or results now, or none of the name any more. "if exists": at
-- install there is nothing yet.
drop function if exists rag._in_any_language(text, text[]);
drop function if exists rag._query_lexemes(text, rag.pipelines);
drop function if exists rag._query_weights(text, rag.pipelines);
drop function if exists rag._rarest_lexemes(text, rag.pipelines, float);
drop function if exists rag._candidates(vector, text, text, rag._search_options, tsquery, rag.pipelines, integer);
drop function if exists rag._join_chunks(text[]);
drop function if exists rag._context(integer, integer, bigint, integer, integer);
drop function if exists rag._fuse(bigint[], vector, text, rag._search_options, rag.pipelines);
drop function if exists rag.evaluate(regclass, regclass, integer, text[], text[]);

comment on column rag.search_result.hybrid_score is 'what ranks: both scores fused, the best of the search up to 1';

create type rag._query_lexeme as (
  lexeme             text,
  text_search_config text,
  occurrences        integer, -- in the question
  chunks             bigint,  -- of the configuration that have it
  idf                real
);
