-- Pipelines: making, filling, activating and dropping them.

create or replace function rag._restore_pipeline() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- pg_restore loads the dumped pipelines into a fresh extension, which has made its own default: the
  -- dumped ones win. Nothing else gives an id in use, or inserts an active pipeline.
  delete from rag.pipelines p
   where p.pipeline_id = new.pipeline_id
      or (p.state = 'active' and new.state = 'active' and p.activated_at = p.created_at);
  return new;
end
$plpgsql$;

create or replace trigger restore_pipeline before insert on rag.pipelines
  for each row execute function rag._restore_pipeline();

insert into rag.pipelines (name, model, state, activated_at)
select 'default', 'all-MiniLM-L6-v2', 'active', now()
where not exists (select from rag.pipelines);

create or replace function rag._active_pipeline() returns rag.pipelines
  language sql stable
  set search_path = pg_catalog, pg_temp
as $sql$ select p from rag.pipelines p where p.state = 'active' $sql$;
comment on function rag._active_pipeline() is 'the pipeline that searches use';

create or replace function rag._pipeline(name text) returns rag.pipelines
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines;
begin
  -- No pipeline can have the name active.
  select * into _pipeline from rag.pipelines p
   where p.name = $1 or ($1 = 'active' and p.state = 'active');
  if not found then
    raise exception 'there is no pipeline "%"', coalesce($1, 'null')
      using errcode = 'undefined_object',
            hint    = 'Pipelines are listed by: select name, state from rag.pipelines;';
  end if;
  return _pipeline;
end
$plpgsql$;
comment on function rag._pipeline(text) is
  'the pipeline of that name, or for active the one that searches use; raises 42704 for an unknown name and for null';

create or replace function rag._locked_pipeline(name text) returns rag.pipelines
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
begin
  -- One at a time: no two sessions switch pipelines. "Exclusive" also waits for a worker that has locked a pipeline's
  -- row to build its index, and is going to update it.
  lock table rag.pipelines in exclusive mode;
  return rag._pipeline(_locked_pipeline.name);
end
$plpgsql$;
comment on function rag._locked_pipeline(text) is 'rag._pipeline(), with the table of pipelines locked against other changes';

create or replace function rag._lock_tables(variadic locks text[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  -- Far below deadlock_timeout: where a transaction of the application has one of the tables and waits for another, it
  -- is this one that lets go.
  set lock_timeout = '100ms'
as $plpgsql$
declare
  _lock text;
begin
  loop
    begin
      foreach _lock in array locks loop
        execute 'lock table ' || _lock;
      end loop;
      return;
    exception when lock_not_available then
      -- The end of the block has released them all.
      perform pg_sleep(0.2);
    end;
  end loop;
end
$plpgsql$;
comment on function rag._lock_tables(text[]) is
  'takes several locks of tables, each as after "lock table", without ever waiting for one while it holds another for longer than 0.1 s';

------------------------------------------------------------------------------------------------
-- A second pipeline beside the active one
--
-- building ──rag.activate_pipeline()──▶ active ──another is activated──▶ superseded
--    ▲                                                                       │
--    └─────────────────────────rag.resume_pipeline()─────────────────────────┘
--
-- Changes go into the active pipeline and every building one. Documents from before are queued by
-- workers (rag._fill_pipelines()), some at a time, behind live changes. A superseded pipeline stays
-- as it was when it was last active.
------------------------------------------------------------------------------------------------

create or replace function rag.create_pipeline(
    name               text,
    model              text    default null,
    chunk_strategy     text    default null,
    chunk_size         integer default null,
    chunk_overlap      integer default null,
    chunk_unit         text    default null,
    embed_template     text    default null,
    text_search_config text    default null,
    index_method       text    default null,
    index_options      jsonb   default null,
    quantization       text    default null,
    ocr                text    default null)
  returns rag.pipelines
  language plpgsql
  -- SECURITY DEFINER: the partition and its indexes belong to ragstone's owner whoever makes the pipeline.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _active     rag.pipelines;
  _pipeline   rag.pipelines;
  _constraint text;
begin
  lock table rag.pipelines in share row exclusive mode;
  select * into strict _active from rag.pipelines p where p.state = 'active';
  if exists (select from rag.pipelines p where p.name = create_pipeline.name) then
    raise exception 'there is a pipeline "%" already', create_pipeline.name
      using errcode = 'duplicate_object',
            hint    = format('Choose another name, or first: select rag.drop_pipeline(%L);', create_pipeline.name);
  elsif not exists (select from rag.models m where m.name = coalesce(create_pipeline.model, _active.model) and m.kind = 'embedding') then
    raise exception 'there is no embedding model "%"', create_pipeline.model
      using errcode = 'undefined_object',
            hint    = 'Models are listed by: select name, dimension from rag.models where kind = ''embedding'';';
  elsif create_pipeline.text_search_config is not null
        and not exists (select from pg_ts_config c where c.oid::regconfig::text = create_pipeline.text_search_config) then
    raise exception 'there is no text search configuration "%"', create_pipeline.text_search_config
      using errcode = 'undefined_object',
            hint    = 'They are listed by: select cfgname from pg_ts_config;';
  end if;

  perform rag._require_ocr(create_pipeline.ocr);

  -- Whoever is changing documents has done so for the pipelines of before; everyone after this sees
  -- the new one. Held for as long as it takes to make some empty indexes.
  lock table rag.documents in share row exclusive mode;
  begin
    insert into rag.pipelines
      (name, model, chunk_strategy, chunk_size, chunk_overlap, chunk_unit, embed_template, text_search_config,
       index_method, index_options, quantization, ocr)
    values
      (create_pipeline.name, coalesce(create_pipeline.model, _active.model),
       coalesce(create_pipeline.chunk_strategy, _active.chunk_strategy),
       coalesce(create_pipeline.chunk_size, _active.chunk_size),
       coalesce(create_pipeline.chunk_overlap, _active.chunk_overlap),
       coalesce(create_pipeline.chunk_unit, _active.chunk_unit),
       coalesce(create_pipeline.embed_template, _active.embed_template),
       coalesce(create_pipeline.text_search_config, _active.text_search_config),
       coalesce(create_pipeline.index_method, _active.index_method),
       coalesce(create_pipeline.index_options, case when create_pipeline.index_method is null then _active.index_options else '{}' end),
       coalesce(create_pipeline.quantization, _active.quantization),
       coalesce(create_pipeline.ocr, _active.ocr))
    returning * into _pipeline;
  exception when check_violation or not_null_violation then
    get stacked diagnostics _constraint = constraint_name;
    raise exception 'a pipeline cannot be like this: %', coalesce(replace(nullif(_constraint, ''), '_', ' '), sqlerrm)
      using errcode = 'invalid_parameter_value',
            hint    = 'What each parameter can be is said by: \d+ rag.pipelines';
  end;
  perform rag._require_index_options(_pipeline);
  perform rag._ensure_partition(_pipeline.pipeline_id);
  insert into rag._pipeline_fill (pipeline_id) values (_pipeline.pipeline_id);
  return _pipeline;
end
$plpgsql$;
comment on function rag.create_pipeline(text, text, text, integer, integer, text, text, text, text, jsonb, text, text) is
  'makes a pipeline that workers fill beside the active one, from the stored text where the chunking is the same and from the files where'
  ' it is not; what is not given is as in the active one. Searches do not see it until rag.activate_pipeline(); how far it is:'
  ' rag.pipeline_progress. Raises 42710 for a name in use, 42704 for an unknown model, text search configuration or language of OCR, 22023'
  ' for values that cannot be';

create or replace function rag._documents_missing(pipeline_id integer, than_active boolean) returns bigint
  language sql stable
  set search_path = pg_catalog, pg_temp
  -- As in rag._set_all_document_states().
  set enable_nestloop = off
  set enable_mergejoin = off
  set jit = off
as $sql$
  select count(*)
  from rag.documents d
  where not exists (select from rag.document_versions v
                    where v.source_id = d.source_id and v.document_id = d.document_id and v.pipeline_id = _documents_missing.pipeline_id
                      and v.state = 'ready' and v.generation = d.generation)
    and (not than_active
         or exists (select from rag.document_versions v join rag.pipelines p on p.pipeline_id = v.pipeline_id and p.state = 'active'
                    where v.source_id = d.source_id and v.document_id = d.document_id and v.state = 'ready'))
$sql$;
comment on function rag._documents_missing(integer, boolean) is
  'documents that a pipeline does not have as they are now; than_active: only those that are searchable now';

create or replace function rag.activate_pipeline(name text, force boolean default false) returns bigint
  language plpgsql
  -- SECURITY DEFINER: pipelines and documents are written by ragstone alone.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._locked_pipeline(activate_pipeline.name);
  _missing  bigint;
  _dead     bigint;
begin
  if _pipeline.state = 'active' then
    return 0;
  end if;
  perform rag._analyze_grown_tables();
  -- After this nobody is in the middle of a change that knows only the old state. "Exclusive" also waits for workers that
  -- have locked a document and are going to update it.
  lock table rag.documents in exclusive mode;
  _missing := rag._documents_missing(_pipeline.pipeline_id, than_active => true);
  if _missing > 0 and not coalesce(activate_pipeline.force, false) then
    select count(*) into _dead from rag.ingestion_queue q where q.pipeline_id = _pipeline.pipeline_id and q.status = 'dead';
    raise exception 'pipeline "%" is missing % documents that are searchable now', _pipeline.name, _missing
      using errcode = 'object_not_in_prerequisite_state',
            detail  = case _pipeline.state
                        when 'superseded' then 'They have changed or come since it was superseded.'
                        else format('%s of its jobs are dead letters; the others wait, run, or are still to be queued.', _dead)
                      end,
            hint    = case _pipeline.state
                        when 'superseded'
                        then format('Have them filled in: select rag.resume_pipeline(%L); or switch at once: ', _pipeline.name)
                        else 'How far it is: select * from rag.pipeline_progress; or switch at once: '
                      end || format('select rag.activate_pipeline(%L, force => true);', _pipeline.name);
  end if;

  update rag.pipelines p set state = 'superseded' where p.state = 'active';
  update rag.pipelines p set state = 'active', activated_at = now() where p.pipeline_id = _pipeline.pipeline_id;
  insert into rag._pipeline_fill (pipeline_id) values (_pipeline.pipeline_id) on conflict on constraint _pipeline_fill_pkey do nothing;
  -- Nothing waits for a superseded pipeline.
  delete from rag.ingestion_queue q using rag.pipelines p
  where p.pipeline_id = q.pipeline_id and p.state = 'superseded';

  perform rag._set_all_document_states();
  return _missing;
end
$plpgsql$;
comment on function rag.activate_pipeline(text, boolean) is
  'switches all searches to a pipeline, in one transaction; the one before stays, to go back to, until rag.drop_pipeline(). Refuses with'
  ' 55000 while documents that are searchable now are missing from it, unless forced: then they are filled in afterwards. Returns how many'
  ' are missing. Changes of documents wait while it works. Raises 42704 for an unknown name';

create or replace function rag.resume_pipeline(name text) returns bigint
  language plpgsql
  -- SECURITY DEFINER: as for rag.activate_pipeline().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._locked_pipeline(resume_pipeline.name);
begin
  if _pipeline.state = 'superseded' then
    lock table rag.documents in share row exclusive mode;
    update rag.pipelines p set state = 'building' where p.pipeline_id = _pipeline.pipeline_id;
    insert into rag._pipeline_fill (pipeline_id) values (_pipeline.pipeline_id) on conflict on constraint _pipeline_fill_pkey do nothing;
  end if;
  return rag._documents_missing(_pipeline.pipeline_id, than_active => false);
end
$plpgsql$;
comment on function rag.resume_pipeline(text) is
  'has workers bring a superseded pipeline up to date again, so that it can be activated; returns how many documents are missing. Raises'
  ' 42704 for an unknown name';

create or replace function rag.drop_pipeline(name text) returns bigint
  language plpgsql
  -- SECURITY DEFINER: as for rag.create_pipeline().
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._locked_pipeline(drop_pipeline.name);
  _versions bigint;
begin
  if _pipeline.state = 'active' then
    raise exception 'pipeline "%" is the active one', _pipeline.name
      using errcode = 'object_in_use',
            detail  = 'Searches use it.',
            hint    = 'Activate another first: select rag.activate_pipeline(name) from rag.pipelines where state <> ''active'';';
  end if;
  -- The worker that brings statistics up to date locks documents after this.
  perform pg_advisory_xact_lock(rag._lock_class(), 0);
  -- No worker is storing a document after this, and no search reads the partition.
  perform rag._lock_tables('rag.documents in exclusive mode', 'only rag.document_chunks in access exclusive mode');
  delete from rag.ingestion_queue q where q.pipeline_id = _pipeline.pipeline_id;
  delete from rag._pipeline_fill f where f.pipeline_id = _pipeline.pipeline_id;
  delete from rag._retained_chunks r using rag.document_versions v
  where v.version_id = r.version_id and v.pipeline_id = _pipeline.pipeline_id;
  with gone as (delete from rag.document_versions v where v.pipeline_id = _pipeline.pipeline_id returning v.state)
  select count(*) into _versions from gone where state = 'ready';
  delete from rag._lexeme_changes l where l.pipeline_id = _pipeline.pipeline_id;
  delete from rag._lexemes l where l.pipeline_id = _pipeline.pipeline_id;
  delete from rag._background b where b.pipeline_id = _pipeline.pipeline_id;
  delete from rag._pipeline_statistics s where s.pipeline_id = _pipeline.pipeline_id;
  execute format('drop table if exists rag.%I', rag._partition(_pipeline.pipeline_id));
  delete from rag.pipelines p where p.pipeline_id = _pipeline.pipeline_id;
  return _versions;
end
$plpgsql$;
comment on function rag.drop_pipeline(text) is
  'drops a pipeline with its chunks and versions; returns how many documents it had. Searches wait for the moment it takes. Raises 55006'
  ' for the active one, 42704 for an unknown name';

create or replace function rag._fill_pipelines() returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _fill      rag._pipeline_fill;
  _sources   integer[];
  _documents bigint[];
  _group     record;
  _queued    bigint := 0;
  _seen      integer;
begin
  select * into _fill from rag._pipeline_fill f order by f.pipeline_id limit 1 for update skip locked;
  if not found then
    return false;
  end if;
  -- Waiting and running jobs have an index each.
  select array_agg(m.source_id), array_agg(m.document_id) into _sources, _documents
    from (select d.source_id, d.document_id
            from rag.documents d
           where (d.source_id, d.document_id) > (_fill.source_id, _fill.document_id)
             and not exists (select from rag.document_versions v
                             where v.source_id = d.source_id and v.document_id = d.document_id and v.pipeline_id = _fill.pipeline_id
                               and v.state = 'ready' and v.generation = d.generation)
             and not exists (select from rag.ingestion_queue q
                             where q.source_id = d.source_id and q.document_id = d.document_id and q.pipeline_id = _fill.pipeline_id
                               and q.status <> 'running')
             and not exists (select from rag.ingestion_queue q
                             where q.source_id = d.source_id and q.document_id = d.document_id and q.pipeline_id = _fill.pipeline_id
                               and q.status = 'running')
           order by d.source_id, d.document_id
           limit 1000) m;
  _seen := coalesce(cardinality(_documents), 0);
  -- One that is busy is met again on the next round.
  for _group in
    select l.source_id, array_agg(l.document_id) as document_ids
      from (select d.source_id, d.document_id
              from unnest(_sources, _documents) m (source_id, document_id)
              join rag.documents d on d.source_id = m.source_id and d.document_id = m.document_id
               for no key update of d skip locked) l
     group by l.source_id
  loop
    _queued := _queued + rag._enqueue(_group.source_id, _group.document_ids, priority => -10, pipeline_id => _fill.pipeline_id);
  end loop;
  if _seen = 1000 then
    update rag._pipeline_fill f set source_id = _sources[_seen], document_id = _documents[_seen] where f.pipeline_id = _fill.pipeline_id;
  elsif _seen = 0 and _fill.source_id = 0 and _fill.document_id = 0 then
    -- A whole round that found nothing to do.
    delete from rag._pipeline_fill f where f.pipeline_id = _fill.pipeline_id;
    return true;
  else
    update rag._pipeline_fill f set source_id = 0, document_id = 0 where f.pipeline_id = _fill.pipeline_id;
  end if;
  -- Where every document that is left is busy, there is nothing to do until later.
  return _queued > 0 or _seen = 0 or _seen = 1000;
end
$plpgsql$;
comment on function rag._fill_pipelines() is
  'queues up to 1,000 documents that a pipeline does not have yet; returns false where there is nothing to do, or nothing that can be done'
  ' now';

create or replace view rag.pipeline_progress with (security_invoker = true) as
  select p.name, p.state, t.documents, t.ready, t.dead, t.documents - t.ready - t.dead as waiting,
         round(100.0 * (t.ready + t.dead) / nullif(t.documents, 0), 1) as percent,
         t.recent as per_minute,
         case when t.documents - t.ready - t.dead > 0
              then date_trunc('second', (t.documents - t.ready - t.dead) / nullif(t.recent, 0)::float * interval '1 minute')
         end as time_left
    from rag.pipelines p
   cross join lateral (
     select (select count(*) from rag.documents) as documents,
            (select count(*)
               from rag.document_versions v
               join rag.documents d on d.source_id = v.source_id and d.document_id = v.document_id
              where v.pipeline_id = p.pipeline_id and v.state = 'ready' and v.generation = d.generation) as ready,
            (select count(*) from rag.ingestion_queue q where q.pipeline_id = p.pipeline_id and q.status = 'dead') as dead,
            (select count(*) from rag.job_history h
              where h.pipeline_id = p.pipeline_id and h.finished_at > now() - interval '1 minute'
                and h.outcome in ('done', 'unchanged')) as recent
   ) t
   order by p.pipeline_id;
comment on view rag.pipeline_progress is
  'how many documents each pipeline has as they are now, and how long the others will take at the speed of the last minute';
