-- Preview: the passages of a text or a file, without storing them.

create or replace function rag.preview_chunks(
    content   text default null,
    file_path text default null,
    pipeline  text default 'active',
    file_name text default null)
  returns setof rag.chunk_preview
  language plpython3u
as $python$
@boot@
from ragstone.db.plpy import Plpy
from ragstone.server.preview import preview_chunks
return preview_chunks(Plpy(plpy), content, file_path, pipeline, file_name)
$python$;
comment on function rag.preview_chunks(text, text, text, text) is
  'the passages that a pipeline (active: the one in use) would make of a text, or of a file below the document root. It is read in the same'
  ' confined process as by a worker, and nothing is stored. file_name tells the format of content, such as notes.md. Raises 22023 unless'
  ' exactly one of content and file_path is given, and if pipeline is null; 42704 for an unknown pipeline, 22000 for a document that cannot'
  ' be read';
