-- PUBLIC has no privileges. Roles get theirs by rag.grant_usage().

revoke all on all tables in schema rag from public;
revoke all on all sequences in schema rag from public;
revoke all on all routines in schema rag from public;
