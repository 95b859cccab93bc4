-- Draining the queue, by hand or from pg_cron.

create or replace procedure rag.drain(run_for interval default '0', max_documents bigint default null)
  language plpython3u
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.worker.loop import drain
with Plpy.of_worker(plpy, "rag.drain()") as connection:
    drain(connection, run_for, max_documents)
$python$;
comment on procedure rag.drain(interval, bigint) is
  'processes the queue in this session, and returns when it is empty and run_for has passed, or after max_documents (null: all). It'
  ' commits as it goes, so it cannot run inside a transaction block. Cancelled, it gives back what it has not done. Raises 25001 inside a'
  ' transaction block, 22023 where run_for is null or negative or max_documents is negative';
