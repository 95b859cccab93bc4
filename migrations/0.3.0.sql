-- What an update from 0.2.0 changes in tables and types. Functions that have other arguments or
-- results now, or none of the name any more, are dropped here: "if exists", as a new installation has none.

drop function if exists rag._claimed_jobs(bigint[]);
drop function if exists rag._claim_jobs(integer, smallint, bigint, bigint, integer);
drop function if exists rag._claim_retry(integer);

-- A question is parsed once per search and passed on in this form.
create type rag._question_words as (
  text_search_config text,
  lexemes            tsvector,
  foreign_stop_words smallint[]
);
comment on type rag._question_words is
  'lexemes of a question by one text search configuration, and the positions at which a stop word of another language stands';

create type rag._question as (
  plain    text,
  required text[],
  excluded text,
  words    rag._question_words[]
);
comment on type rag._question is
  'a parsed question: the text that ranks, the phrases that a passage must have, the words that it must not have, and the lexemes of plain'
  ' in each language in use';

drop function if exists rag._query_lexemes(text, rag.pipelines);
drop function if exists rag._text_condition(text[], text, text[]);
drop function if exists rag._search_hits(vector, text, rag._search_options, tsquery, rag.pipelines);
drop function if exists rag._words_to_mark(text, text, text);
drop function if exists rag._snippet(text, text, text);
drop function if exists rag._search_results(rag._search_hit[], text, rag._search_options, rag.pipelines);
drop function if exists rag._searched_pipeline(text);
drop function if exists rag._rebuild_step(text, text, jsonb, text, boolean);

-- How far the weights of BM25 are computed anew.
alter table rag._pipeline_statistics add column weighed_source_id integer, add column weighed_document_id bigint;
comment on column rag._pipeline_statistics.weighed_document_id is
  'with weighed_source_id: up to which document the chunks have weights of average_length; null: all have, or there are too many';
drop function if exists rag._refresh_statistics();
drop function if exists rag._folder_problem(text);
