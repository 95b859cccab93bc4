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

-- Sources: what cannot be followed is noted and shown; notes that cannot be expanded now are tried again later.
alter table rag.sources add column problem text;
comment on column rag.sources.problem is 'why changes of its rows cannot be followed, or not all of them; null where they can';
alter table rag._changes add column attempts smallint not null default 0;
alter table rag._changes add column run_at timestamptz;
comment on column rag._changes.run_at is 'not before; null: at once';
create index next_changes on rag._changes (priority desc, change_id);
drop function if exists rag._expand_keys(integer, text[], smallint);
drop function if exists rag._source_of_trigger(integer, regclass);
drop function if exists rag._new_rows(text);
drop function if exists rag._old_rows(text);

-- Rows of a source on their way to rag.documents, as rag._take_up() has them.
create type rag._source_row as (
  document_id bigint,
  source_key  text,
  file_path   text,
  title       text,
  tenant_id   bigint,
  tags        text[],
  language    text,
  metadata    jsonb
);
drop function if exists rag._fingerprint(bytea, text, text, rag.pipelines);

-- A task of rag.maintain() that failed is known afterwards.
alter table rag.maintenance_log alter column count drop not null;
alter table rag.maintenance_log add column error text;
comment on column rag.maintenance_log.count is 'of what the task names; null where it failed';
comment on column rag.maintenance_log.error is 'why the task failed, null where it did not';
drop function if exists rag._log_maintenance(text, bigint, timestamptz);

-- By key first. With the source first, a table that was not analyzed yet had documents looked up by this index, by
-- their source alone, which reads all documents of the source each time.
alter table rag.documents drop constraint documents_source_id_source_key_key;
alter table rag.documents add constraint documents_source_id_source_key_key unique (source_key, source_id);

-- It gives a hint as well now.
drop function if exists rag._folder_problem(text);
