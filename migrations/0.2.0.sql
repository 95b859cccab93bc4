-- Functions that have other arguments now, or none of the name any more. "if exists": at install there
-- is nothing yet.

drop function if exists rag._join_chunks(text[]);
drop function if exists rag._context(integer, integer, bigint, integer, integer);
drop function if exists rag._fuse(bigint[], vector, text, rag._search_options, rag.pipelines);
drop function if exists rag.evaluate(regclass, regclass, integer, text[], text[]);

comment on column rag.search_result.hybrid_score is 'what ranks: both scores fused, the best of the search up to 1';
