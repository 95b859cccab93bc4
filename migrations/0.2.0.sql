-- Functions that have other arguments now, or none of the name any more. "if exists": at install there
-- is nothing yet.

drop function if exists rag._join_chunks(text[]);
drop function if exists rag._context(integer, integer, bigint, integer, integer);
