-- Changes: from changed rows of a source to documents and jobs.
--
-- A statement only notes the keys of its changed rows in rag._changes; a worker makes documents and jobs of them. So a statement costs
-- little, reads nothing but its own rows, and writes nothing that a worker writes too. Deletes are not left to a worker.

create or replace function rag._change_payload(operation text, document_id bigint, file_path text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$
  select json_build_object('operation', operation, 'document_id', document_id, 'file_path', file_path, 'timestamp', now())::text
$sql$;
comment on function rag._change_payload(text, bigint, text) is
  'what channel document_changes is told of a document, as the earlier worker did';

create or replace function rag._notify_change(operation text, document_id bigint, file_path text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- A payload has less than 8,000 bytes, and each byte of a path can take six of them. A path that is too long is left out.
  select pg_notify('document_changes', case when octet_length(p.whole) < 8000 then p.whole else p.short end)
  from (select rag._change_payload(operation, document_id, file_path) as whole,
               rag._change_payload(operation, document_id, null) as short) p
$sql$;
comment on function rag._notify_change(text, bigint, text) is
  'tells channel document_changes of one document';

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
  -- json accepts what jsonb does not, such as \u0000 and very large numbers.
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
                else 'jsonb_build_object(%1$L, case when s.%1$I is not null then format(''%%s'', s.%1$I) end)' end, c),
           ' || ' order by i), '''{}''::jsonb')
  from unnest(source.metadata_columns) with ordinality u (c, i)
$sql$;
comment on function rag._metadata_expression(rag.sources) is 'expression for the metadata of the source''s row s';

create or replace function rag._expand_keys(
    source_id integer, keys text[], priority smallint, out locked text[], out repeated text[], out absent text[])
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _rows   rag._source_row[];
begin
  select * into _source from rag.sources s where s.source_id = _expand_keys.source_id;
  perform rag._require_own_code(_source.relation);
  perform rag._require_columns(_source);

  -- Key share, as a foreign key takes it: a row that is being deleted right now must not become a
  -- document behind the back of its delete trigger. Rows that somebody holds are left for later.
  execute format($sql$
    with present as (
      select %1$s as key, %2$s as file_path, %3$s as title, %4$s as tenant_id, %5$s as tags, %6$s as language, %7$s as metadata
      from %8$s s
      where %9$s
      for key share of s skip locked
    ), counted as (
      select p.*, count(*) over (partition by p.key) as rows from present p
    )
    select array_agg((%10$s, p.key, p.file_path, p.title, p.tenant_id, p.tags, p.language, p.metadata)::rag._source_row)
             filter (where p.rows = 1),
           coalesce(array_agg(distinct p.key) filter (where p.rows > 1), '{}')
      from counted p
    $sql$,
    rag._key_text(_source.key_column, 's'),
    rag._column_or_null(coalesce(_source.path_column, _source.name_column), 'text'),
    rag._column_or_null(_source.title_column, 'text'),
    rag._column_or_null(_source.tenant_column, 'bigint'),
    rag._column_or_null(_source.tags_column, 'text[]'),
    rag._column_or_null(_source.language_column, 'text'),
    rag._metadata_expression(_source),
    _source.relation,
    rag._has_key_of(_source, '$1'),
    case when _source.assigns_ids then 'nextval(''rag._document_id_seq'')' else 'p.key::bigint' end)
  into _rows, repeated using _expand_keys.keys;
  perform rag._take_up(_expand_keys.source_id, _rows, _expand_keys.priority);

  locked := '{}';
  absent := '{}';
  if cardinality(_rows) is distinct from cardinality(_expand_keys.keys) then
    execute format($sql$
      with seen as materialized (select %1$s as key from %2$s s where %3$s),
           taken as materialized (select r.source_key as key from unnest($2) r union all select unnest($3))
      select array(select s.key from seen s where s.key not in (select t.key from taken t)),
             array(select k from unnest($1) k where k not in (select s.key from seen s))
      $sql$, rag._key_text(_source.key_column, 's'), _source.relation, rag._has_key_of(_source, '$1'))
    into locked, absent using _expand_keys.keys, coalesce(_rows, '{}'), repeated;
  end if;
end
$plpgsql$;
comment on function rag._expand_keys(integer, text[], smallint) is
  'makes rows of a source documents with a new generation and queues them. Left out and returned are the keys of rows that another'
  ' transaction has locked, keys that several rows have, and keys of no row';

create or replace function rag._record_changes(source_id integer, keys text[], priority smallint) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  if cardinality(_record_changes.keys) <= 10000 then
    insert into rag._changes (source_id, keys, priority) values (_record_changes.source_id, _record_changes.keys, _record_changes.priority);
  else
    -- 10,000 keys a row: a worker expands them in one transaction of some 0.2 s.
    insert into rag._changes (source_id, keys, priority)
    select _record_changes.source_id, array_agg(k), _record_changes.priority
    from unnest(_record_changes.keys) with ordinality u (k, i)
    group by (i - 1) / 10000;
  end if;
end
$plpgsql$;
comment on function rag._record_changes(integer, text[], smallint) is
  'notes the keys of changed rows for a worker, up to 10,000 in a row of rag._changes';

create or replace function rag._note_problem(source_id integer, problem text) returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  update rag.sources s set problem = _note_problem.problem
  where s.source_id = _note_problem.source_id and s.problem is distinct from _note_problem.problem
$sql$;
comment on function rag._note_problem(integer, text) is
  'keeps why changes of a source cannot be followed, null where they can, for rag.failures and rag.check()';

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

create or replace function rag._postpone_changes(changes rag._changes[], keys text[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _first  rag._changes := changes[1];
  -- From half a second to ten.
  _run_at timestamptz  := clock_timestamp() + least(power(2, least(_first.attempts, 10)) * interval '0.5 s', interval '10 s');
begin
  if cardinality(changes) = 1 and cardinality(_first.keys) = cardinality(_postpone_changes.keys) then
    -- Keys that are stored outside of the row are not written again.
    update rag._changes c set attempts = least(c.attempts + 1, 1000), run_at = _run_at where c.change_id = _first.change_id;
  else
    delete from rag._changes c where c.change_id in (select u.change_id from unnest(changes) u);
    insert into rag._changes (source_id, keys, priority, created_at, attempts, run_at)
    values (_first.source_id, _postpone_changes.keys, _first.priority, _first.created_at, least(_first.attempts + 1, 1000), _run_at);
  end if;
end
$plpgsql$;
comment on function rag._postpone_changes(rag._changes[], text[]) is
  'has noted keys tried again later, the later the more often that was in vain; others are taken meanwhile';

create or replace function rag._retry_changes() returns void
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$ update rag._changes c set run_at = null where c.run_at is not null $sql$;
comment on function rag._retry_changes() is 'has all noted keys tried at once; each worker that begins does so';

create or replace function rag._take_changes(min_priority smallint) returns rag._changes[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _first rag._changes;
  _more  rag._changes[];
begin
  select * into _first
    from rag._changes c
   where c.priority >= _take_changes.min_priority and (c.run_at is null or c.run_at <= clock_timestamp())
   order by c.priority desc, c.change_id
   limit 1
     for update skip locked;
  if not found then
    return null;
  end if;
  if _first.attempts = 0 then
    -- Single-row statements leave a note each: together these are as quick as those of one large statement.
    select array_agg(t::rag._changes) into _more
    from (select c.* from rag._changes c
           where c.change_id in (select w.change_id
                                 from (select n.change_id, sum(cardinality(n.keys)) over (order by n.change_id) as total
                                       from (select * from rag._changes n
                                             where n.priority >= _take_changes.min_priority
                                             order by n.priority desc, n.change_id limit 1000) n
                                       where n.source_id = _first.source_id and n.priority = _first.priority) w
                                 where w.total <= 10000)
             and c.attempts = 0 and c.change_id <> _first.change_id
             for update skip locked) t;
  end if;
  return array[_first] || coalesce(_more, '{}');
end
$plpgsql$;
comment on function rag._take_changes(smallint) is
  'locks the notes that are next and of one source, up to 1,000 with 10,000 keys together; null where there is none';

create or replace function rag._expand_changes(min_priority smallint) returns integer
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Whoever holds a table or a row must not hold up other sources.
  set lock_timeout = '2s'
as $plpgsql$
declare
  _changes rag._changes[];
  _first   rag._changes;
  _source  rag.sources;
  _keys    text[];
  _locked  text[];
  _rest    record;
  _problem text;
begin
  -- What cannot be expanded is put off, and the next is looked at.
  for _attempt in 1 .. 10 loop
    _changes := rag._take_changes(_expand_changes.min_priority);
    if _changes is null then
      return 0;
    end if;
    _first := _changes[1];
    select s.* into _source from rag.sources s join pg_class c on c.oid = s.relation where s.source_id = _first.source_id;
    if not found then
      -- Dropped while nobody was told, as event triggers can be switched off.
      perform rag._forget_source(_first.source_id);
      return greatest(cardinality(_first.keys), 1);
    end if;
    select array_agg(distinct k) into _keys from unnest(_changes) c, unnest(c.keys) k;
    if _keys is null then
      -- A trigger could not tell which rows had changed.
      delete from rag._changes c where c.change_id in (select u.change_id from unnest(_changes) u);
      perform rag._note_problem(_first.source_id, 'changes could not be noted; rag.maintain() finds them');
      return 1;
    end if;
    _problem := null;
    _locked := '{}';
    begin
      _locked := rag._busy_keys(_first.source_id, _keys);
      select * into _rest
      from rag._expand_keys(_first.source_id, array(select unnest(_keys) except select unnest(_locked)), _first.priority);
      _locked := _locked || _rest.locked;
      perform rag._refuse_row(_first.source_id, k, '21000', format('more than one row has the key %s', k)) from unnest(_rest.repeated) k;
      if _rest.absent <> '{}' then
        perform rag._delete_documents_without_row(_first.source_id, _rest.absent);
      end if;
      _problem := rag._key_problem(_source);
    exception
      when data_exception or integrity_constraint_violation or program_limit_exceeded then
        -- One row must not take the others along: halves, until it is alone.
        if cardinality(_keys) > 1 then
          delete from rag._changes c where c.change_id in (select u.change_id from unnest(_changes) u);
          -- With an attempt, so that small notes are not put together again.
          insert into rag._changes (source_id, keys, priority, created_at, attempts)
          select _first.source_id, h.keys, _first.priority, _first.created_at, greatest(_first.attempts, 1)
          from (select cardinality(_keys) / 2 as middle) m, lateral (values (_keys[:m.middle]), (_keys[m.middle + 1:])) h (keys);
          return cardinality(_keys);
        end if;
        begin
          perform rag._refuse_row(_first.source_id, _keys[1], sqlstate, sqlerrm);
        exception when others then
          _locked := _keys;
          _problem := sqlerrm;
        end;
      when lock_not_available or deadlock_detected or serialization_failure then
        perform rag._postpone_changes(_changes, _keys);
        continue;
      when others then
        -- Whatever is wrong with one source, the others go on.
        _locked := _keys;
        _problem := sqlerrm;
    end;
    perform rag._note_problem(_first.source_id, _problem);
    if cardinality(_locked) > 0 then
      perform rag._postpone_changes(_changes, _locked);
      continue when cardinality(_locked) = cardinality(_keys);
    else
      delete from rag._changes c where c.change_id in (select u.change_id from unnest(_changes) u);
    end if;
    return cardinality(_keys) - cardinality(_locked);
  end loop;
  return 0;
end
$plpgsql$;
comment on function rag._expand_changes(smallint) is
  'turns noted keys of one source into documents and jobs; returns how many, 0 where there is nothing to do, or nothing that can be done'
  ' now. A source that cannot be read holds up no other: its keys are kept, and rag.sources.problem says why';

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
  _ids    bigint[];
  _notify boolean;
begin
  -- Not by rag.get(), which takes longer than the rest of a small delete.
  _notify := exists (select from rag._settings t where t.name = 'notifications' and t.tenant_id is null and t.value = 'on');
  -- First the documents: this waits for a worker that is just storing one, and the next statement
  -- then sees the chunks it stored.
  if _delete_documents.keys is null then
    with gone as (
      delete from rag.documents d where d.source_id = _delete_documents.source_id returning d.document_id, d.file_path
    ), notified as (
      select rag._notify_change('DELETE', g.document_id, g.file_path) from gone g where _notify
    )
    select array_agg(g.document_id) into _ids from gone g where (select count(*) from notified) >= 0;
  else
    with gone as (
      delete from rag.documents d
       using (select _delete_documents.source_id as source_id, k.key from unnest(_delete_documents.keys) k (key) offset 0) k
       where d.source_id = k.source_id and d.source_key = k.key
      returning d.document_id, d.file_path
    ), notified as (
      select rag._notify_change('DELETE', g.document_id, g.file_path) from gone g where _notify
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

create or replace function rag._delete_documents_without_row(source_id integer, keys text[]) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _source rag.sources;
  _known  text[];
  _gone   text[];
begin
  -- Locked before the table is asked: a row that comes back meanwhile is expanded after this transaction.
  select array_agg(l.source_key) into _known
  from (select d.source_key from rag.documents d
        where d.source_id = _delete_documents_without_row.source_id and d.source_key = any (_delete_documents_without_row.keys)
        order by d.source_key
          for update) l;
  if _known is null then
    return 0;
  end if;
  select * into strict _source from rag.sources s where s.source_id = _delete_documents_without_row.source_id;
  execute format('select array_agg(k) from unnest($1) k where k not in (select %s from %s s where %s)',
                 rag._key_text(_source.key_column, 's'), _source.relation, rag._has_key_of(_source, '$1'))
  into _gone using _known;
  return case when _gone is null then 0 else rag._delete_documents(_source.source_id, _gone) end;
end
$plpgsql$;
comment on function rag._delete_documents_without_row(integer, text[]) is
  'takes those of the documents out of search whose row is gone; returns how many. It reads the source, whose code the caller has checked';
