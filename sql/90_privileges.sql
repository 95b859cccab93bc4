-- Nothing is for everybody: privileges are given by name.

revoke all on all tables in schema rag from public;
revoke all on all sequences in schema rag from public;
revoke all on all routines in schema rag from public;
