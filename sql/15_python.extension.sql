-- Private functions in PL/Python. Each makes the package importable, imports, calls and returns.
-- Files whose name ends in .extension.sql need PL/Python or a superuser; a managed server does without them.

create or replace function rag._folder_problem(path text, out problem text, out hint text)
  language plpython3u
as $python$
@boot@
from ragstone.stores.files import root_problem
return root_problem(path)
$python$;
comment on function rag._folder_problem(text) is
  'why documents cannot be read from below the folder and what to do (null: look at the folders above it); nulls where they can';

create or replace function rag._embed(content text, model text) returns vector
  language plpython3u stable strict parallel restricted
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.server.functions import embed
return embed(Plpy(plpy), content, model)
$python$;
comment on function rag._embed(text, text) is 'embedding by the named model; no prefix, no cache';
create or replace function rag._ocr_problem(languages text, out problem text, out hint text)
  language plpython3u
as $python$
@boot@
from ragstone.extract.tesseract import data_folder, problem
return problem(languages, data_folder())
$python$;
comment on function rag._ocr_problem(text) is
  'why these languages cannot be recognised on this server and what to do; nulls where they can';

create or replace function rag._build_memory(bytes bigint) returns text
  language plpython3u
as $python$
@boot@
from ragstone.memory import available_bytes
quarter = (available_bytes() or 0) // 4
wanted = min(bytes, max(quarter, 64 << 20))
return f"{max(wanted >> 10, 1024)}kB"
$python$;
comment on function rag._build_memory(bigint) is
  'maintenance_work_mem for an index of that size: no more than a quarter of what the machine has available';

create or replace procedure rag._require_no_transaction(name text)
  language plpython3u
as $python$
@boot@
from ragstone.db.plpy import Plpy
Plpy.of_procedure(plpy, name)
$python$;
comment on procedure rag._require_no_transaction(text) is 'raises 25001 inside a transaction block, in the name of a procedure';

create or replace function rag._rerank(query_text text, passages text[], model text) returns float[]
  language plpython3u stable strict parallel restricted
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.server.functions import rerank
return rerank(Plpy(plpy), query_text, passages, model)
$python$;
comment on function rag._rerank(text, text[], text) is 'score of each passage for a question, by a reranker';
create or replace function rag._check_in_python(name text, out ok boolean, out detail text, out hint text)
  language plpython3u
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.server.check import run
return run(Plpy(plpy), name)
$python$;
comment on function rag._check_in_python(text) is 'a check that the package does';
