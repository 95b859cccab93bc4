-- The nightly pass over all tasks of 64_maintenance.sql.

create or replace procedure rag.maintain()
  language plpython3u
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.server.maintenance import maintain
with Plpy.of_worker(plpy, "rag.maintain()") as connection:
    maintain(connection)
$python$;
comment on procedure rag.maintain() is
  'queues documents whose file has changed on disk or whose chunks are outdated, removes orphans, old versions, old history and old cached'
  ' queries, brings statistics up to date, and checks that nothing contradicts itself. What it did is in rag.maintenance_log. It commits'
  ' after each task, so it cannot run inside a transaction block; rag.start_workers() has it run nightly';
