-- Changes: from changed rows of a source to documents and jobs.
--
-- A statement of up to 100 changed rows becomes documents and jobs in its own transaction. A larger
-- one only notes its keys in rag._changes, which a worker expands: a bulk load stays fast.

create or replace function rag._notify_change(operation text, document_id bigint, file_path text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A payload has less than 8,000 bytes, and each of a path's can take six there; one too long is left
  -- to the reader to look up.
  select pg_notify('document_changes', case when octet_length(p.whole) < 8000 then p.whole else p.short end)
  from (select json_build_object('operation', operation, 'document_id', document_id, 'file_path', file_path, 'timestamp', now())::text as whole,
               json_build_object('operation', operation, 'document_id', document_id, 'file_path', null, 'timestamp', now())::text as short) p
$sql$;
comment on function rag._notify_change(text, bigint, text) is
  'tells channel document_changes of one document, in the payload of the earlier worker';

create or replace function rag._column_or_null(column_name name, type text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $sql$ select case when column_name is null then 'null::' || type else format('s.%I::%s', column_name, type) end $sql$;
comment on function rag._column_or_null(name, text) is 'expression for a column of the source''s row s, null where it has none';

create or replace function rag._jsonb_of(value json) returns jsonb
  language plpgsql immutable strict
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  return value::jsonb;
exception when data_exception then
  -- json takes what no text can hold, such as \u0000, and numbers beyond all bounds.
  return to_jsonb(value::text);
end
$plpgsql$;
comment on function rag._jsonb_of(json) is 'the value as jsonb; as a string where it holds what jsonb cannot';

create or replace function rag._metadata_expression(source rag.sources) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A jsonb object is taken as it is, any other column under its name. Making json calls a cast of the
  -- type where there is one; writing it as text calls only the type's own output.
  select coalesce(string_agg(format(
           case when rag._column_type(source.relation, c) = 'jsonb'::regtype
                then 'case jsonb_typeof(s.%1$I) when ''object'' then s.%1$I else jsonb_build_object(%1$L, s.%1$I) end'
                when rag._column_type(source.relation, c) = 'json'::regtype
                then 'jsonb_build_object(%1$L, rag._jsonb_of(s.%1$I))'
                when rag._has_trusted_type(source.relation, c)
                then 'jsonb_build_object(%1$L, s.%1$I)'
                else 'jsonb_build_object(%1$L, case when s.%1$I is not null then format(''%%s'', s.%1$I) end)' end, c), ' || ' order by i), '''{}''::jsonb')
  from unnest(source.metadata_columns) with ordinality u (c, i)
$sql$;
comment on function rag._metadata_expression(rag.sources) is 'expression for the metadata of the source''s row s';

create or replace function rag._expand_keys(source_id integer, keys text[], priority smallint) returns text[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _type   text;
  _rows   rag._source_row[];
  _locked text[];
begin
  select * into _source from rag.sources s where s.source_id = _expand_keys.source_id;
  perform rag._require_own_code(_source.relation);
  _type := rag._column_type(_source.relation, _source.key_column);

  -- Key share, as a foreign key takes it: a row that is being deleted right now must not become a
  -- document behind the back of its delete trigger. Rows that somebody holds are left for later.
  execute format($sql$
    with present as (
      select s.%1$I::text as key, %2$s as file_path, %3$s as title, %4$s as tenant_id, %5$s as tags, %6$s as language, %7$s as metadata
      from %8$s s
      where s.%1$I = any ($1::%9$s[])
      for key share of s skip locked
    )
    select array_agg((%10$s, p.key, p.file_path, p.title, p.tenant_id, p.tags, p.language, p.metadata)::rag._source_row) from present p
    $sql$,
    _source.key_column,
    rag._column_or_null(coalesce(_source.path_column, _source.name_column), 'text'),
    rag._column_or_null(_source.title_column, 'text'),
    rag._column_or_null(_source.tenant_column, 'bigint'),
    rag._column_or_null(_source.tags_column, 'text[]'),
    rag._column_or_null(_source.language_column, 'text'),
    rag._metadata_expression(_source),
    _source.relation,
    _type,
    case when _source.assigns_ids then 'nextval(''rag._document_id_seq'')' else 'p.key::bigint' end)
  into _rows using _expand_keys.keys;
  perform rag._take_up(_expand_keys.source_id, _rows, _expand_keys.priority);

  if cardinality(_rows) is distinct from cardinality(_expand_keys.keys) then
    execute format($sql$
      select array_agg(s.%1$I::text)
      from %2$s s
      where s.%1$I = any ($1::%3$s[]) and s.%1$I::text not in (select r.source_key from unnest($2) r)
      $sql$, _source.key_column, _source.relation, _type)
    into _locked using _expand_keys.keys, coalesce(_rows, '{}');
  end if;
  return _locked;
end
$plpgsql$;
comment on function rag._expand_keys(integer, text[], smallint) is
  'makes rows of a source documents with a new generation and queues them; returns the keys of rows that another transaction has locked,'
  ' to be tried again';

create or replace function rag._record_changes(source_id integer, keys text[], priority smallint) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _later text[] := _record_changes.keys;
begin
  if cardinality(_later) <= 100 then
    _later := rag._expand_keys(_record_changes.source_id, _later, _record_changes.priority);
  end if;
  if cardinality(_later) <= 10000 then
    insert into rag._changes (source_id, keys, priority) values (_record_changes.source_id, _later, _record_changes.priority);
  elsif _later is not null then
    insert into rag._changes (source_id, keys, priority)
    select _record_changes.source_id, array_agg(k), _record_changes.priority
    from unnest(_later) with ordinality u (k, i)
    group by (i - 1) / 10000;
  end if;
end
$plpgsql$;
comment on function rag._record_changes(integer, text[], smallint) is
  'queues changed rows: at once where they are few, else through rag._changes, 10,000 keys a row';

create or replace function rag._refuse_row(source_id integer, key text, code text, message text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
#variable_conflict use_column
declare
  _hint        constant text := 'Correct the row: its update is looked at anew.';
  _assigns_ids boolean;
  _document_id bigint;
begin
  select s.assigns_ids into strict _assigns_ids from rag.sources s where s.source_id = _refuse_row.source_id;
  insert into rag.documents as d (source_id, document_id, source_key)
  values (_refuse_row.source_id, case when _assigns_ids then nextval('rag._document_id_seq') else _refuse_row.key::bigint end,
          _refuse_row.key)
  on conflict on constraint documents_source_id_source_key_key do update
    set generation = nextval('rag._generation_seq'), updated_at = now()
  returning document_id into _document_id;
  perform rag._enqueue(_refuse_row.source_id, array[_document_id]);
  perform rag._record_failure(q, 'permanent', 'read', _refuse_row.code, _refuse_row.message, _hint)
     from rag.ingestion_queue q
    where q.source_id = _refuse_row.source_id and q.document_id = _document_id and q.status <> 'running';
exception
  when program_limit_exceeded then
    raise warning 'a row of source % has a key that is too long for a document', _refuse_row.source_id
      using detail = format('It begins with %s and has %s bytes.', left(_refuse_row.key, 40), octet_length(_refuse_row.key));
end
$plpgsql$;
comment on function rag._refuse_row(integer, text, text, text) is
  'makes a row that cannot become a document a failed one, and a dead letter';

create or replace function rag._busy_keys(source_id integer, keys text[]) returns text[]
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  with free as materialized (
    select d.source_key
      from rag.documents d
     where d.source_id = _busy_keys.source_id and d.source_key = any (keys)
       for no key update skip locked
  )
  select coalesce(array_agg(d.source_key), '{}')
    from rag.documents d
   where d.source_id = _busy_keys.source_id and d.source_key = any (keys)
     and not exists (select from free f where f.source_key = d.source_key)
$sql$;
comment on function rag._busy_keys(integer, text[]) is
  'locks the documents of these keys, as far as no other transaction has them, and returns the keys of the others. A worker that waited'
  ' for one while it holds others could be in a deadlock with the application';

create or replace function rag._expand_changes(min_priority smallint) returns integer
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Whoever holds a table or a row must not hold up other sources.
  set lock_timeout = '5s'
as $plpgsql$
declare
  _change rag._changes;
  _busy   text[];
  _left   text[];
begin
  select * into _change
    from rag._changes c
   where c.priority >= _expand_changes.min_priority
   order by c.priority desc, c.change_id
   limit 1
     for update skip locked;
  if not found then
    return 0;
  end if;
  delete from rag._changes c where c.change_id = _change.change_id;
  if not exists (select from rag.sources s join pg_class c on c.oid = s.relation where s.source_id = _change.source_id) then
    -- Dropped while nobody was told, as event triggers can be switched off.
    perform rag._forget_source(_change.source_id);
    return cardinality(_change.keys);
  end if;
  begin
    _busy := rag._busy_keys(_change.source_id, _change.keys);
    _left := nullif(_busy || rag._expand_keys(_change.source_id,
                                              array(select unnest(_change.keys) except all select unnest(_busy)), _change.priority), '{}');
  exception
    when data_exception or integrity_constraint_violation or program_limit_exceeded then
      -- One row must not take the others along: halves, until it is alone.
      if cardinality(_change.keys) = 1 then
        perform rag._refuse_row(_change.source_id, _change.keys[1], sqlstate, sqlerrm);
      else
        insert into rag._changes (source_id, keys, priority, created_at)
        select _change.source_id, h.keys, _change.priority, _change.created_at
        from (select cardinality(_change.keys) / 2 as middle) m,
             lateral (values (_change.keys[:m.middle]), (_change.keys[m.middle + 1:])) h (keys);
      end if;
      return cardinality(_change.keys);
    when lock_not_available or object_not_in_prerequisite_state then
      _left := _change.keys;
  end;
  if _left is not null then
    -- To the back of the line, so that rows locked for long hold up no others.
    insert into rag._changes (source_id, keys, priority, created_at)
    values (_change.source_id, _left, _change.priority, _change.created_at);
  end if;
  return cardinality(_change.keys) - coalesce(cardinality(_left), 0);
end
$plpgsql$;
comment on function rag._expand_changes(smallint) is
  'turns one row of rag._changes into documents and jobs; returns how many, 0 where there is nothing to do, or nothing that can be done'
  ' now';

create or replace function rag._delete_documents(source_id integer, keys text[]) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Always by the indexes: statistics of documents and queue are soon outdated, and a plan that reads all of them is
  -- kept. "offset 0" keeps the list of documents apart: each is looked up by its whole key, never by its source alone.
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set jit = off
as $plpgsql$
declare
  _ids bigint[];
begin
  -- First the documents: this waits for a worker that is just storing one, and the next statement
  -- then sees the chunks it stored.
  if _delete_documents.keys is null then
    with gone as (
      delete from rag.documents d where d.source_id = _delete_documents.source_id returning d.document_id, d.file_path
    ), notified as (
      select rag._notify_change('DELETE', g.document_id, g.file_path) from gone g where rag.get('notifications') = 'on'
    )
    select array_agg(g.document_id) into _ids from gone g where (select count(*) from notified) >= 0;
  else
    with gone as (
      delete from rag.documents d
       using (select _delete_documents.source_id as source_id, k.key from unnest(_delete_documents.keys) k (key) offset 0) k
       where d.source_id = k.source_id and d.source_key = k.key
      returning d.document_id, d.file_path
    ), notified as (
      select rag._notify_change('DELETE', g.document_id, g.file_path) from gone g where rag.get('notifications') = 'on'
    )
    select array_agg(g.document_id) into _ids from gone g where (select count(*) from notified) >= 0;
  end if;

  -- Twice, as waiting and running jobs have an index each.
  delete from rag.ingestion_queue q
   using (select _delete_documents.source_id as source_id, i.document_id from unnest(_ids) i (document_id) offset 0) i
   where q.source_id = i.source_id and q.document_id = i.document_id and q.status <> 'running';
  delete from rag.ingestion_queue q
   using (select _delete_documents.source_id as source_id, i.document_id from unnest(_ids) i (document_id) offset 0) i
   where q.source_id = i.source_id and q.document_id = i.document_id and q.status = 'running';
  with gone as (
    delete from rag.document_versions v
     using (select _delete_documents.source_id as source_id, i.document_id from unnest(_ids) i (document_id) offset 0) i
     where v.source_id = i.source_id and v.document_id = i.document_id
    returning v.version_id
  )
  delete from rag._retained_chunks r using (select g.version_id from gone g offset 0) g where r.version_id = g.version_id;

  -- Of a whole source also chunks whose document is gone.
  if _delete_documents.keys is null then
    with gone as (
      delete from rag.document_chunks c
       where c.source_id = _delete_documents.source_id
      returning c.pipeline_id, c.text_search_config, c.content_tsv
    )
    insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
    select g.pipeline_id, g.text_search_config, -1, g.content_tsv from gone g;
  else
    with gone as (
      delete from rag.document_chunks c
       using (select _delete_documents.source_id as source_id, i.document_id from unnest(_ids) i (document_id) offset 0) i
       where c.source_id = i.source_id and c.document_id = i.document_id
      returning c.pipeline_id, c.text_search_config, c.content_tsv
    )
    insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
    select g.pipeline_id, g.text_search_config, -1, g.content_tsv from gone g;
  end if;
  return coalesce(cardinality(_ids), 0);
end
$plpgsql$;
comment on function rag._delete_documents(integer, text[]) is
  'takes documents of a source (keys null: all) out of search, with their jobs and versions; returns how many';
