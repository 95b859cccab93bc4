-- What an update from 0.2.0 changes in tables and types. Functions that have other arguments or
-- results now, or none of the name any more, are dropped here: "if exists", as a new installation has none.

drop function if exists rag._claimed_jobs(bigint[]);
drop function if exists rag._claim_jobs(integer, smallint, bigint, bigint, integer);
drop function if exists rag._claim_retry(integer);
