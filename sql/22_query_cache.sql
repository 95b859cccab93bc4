-- The embeddings of recent questions: a question is embedded once, then taken from the cache.

create or replace function rag._evict_queries(max_entries integer, max_age interval) returns bigint
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Rows that another transaction has locked are skipped, so that no search waits for another.
  with gone as (
  delete from rag._query_cache c
   where c.key = any (array(
           select o.key
             from rag._query_cache o
            where o.last_used_at < now() - max_age
               or o.last_used_at <= (select e.last_used_at
                                       from rag._query_cache e
                                      order by e.last_used_at desc offset max_entries limit 1)
              for update skip locked))
  returning 1)
  select count(*) from gone
$sql$;
comment on function rag._evict_queries(integer, interval) is
  'drops the least recently used query embeddings beyond the limits of number and age; returns how many';

create or replace function rag._remember_query(key bytea, embedding vector) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _max_entries constant integer := rag.get('query_cache_entries');
begin
  -- With on conflict alone, a second search for the same question would wait until the first commits.
  if not pg_try_advisory_xact_lock(('x' || left(encode(_remember_query.key, 'hex'), 16))::bit(64)::bigint) then
    return;
  end if;
  insert into rag._query_cache (key, embedding, last_used_at)
  values (_remember_query.key, _remember_query.embedding, clock_timestamp())
  on conflict on constraint _query_cache_pkey do update
    set embedding = excluded.embedding, last_used_at = excluded.last_used_at;
  -- Not each time: the cache may exceed its limit by 1/64.
  if nextval('rag._query_cache_misses_seq') % greatest(_max_entries / 64, 1) = 0 then
    perform rag._evict_queries(_max_entries, rag.get('query_cache_days')::integer * interval '1 day');
  end if;
end
$plpgsql$;
comment on function rag._remember_query(bytea, vector) is
  'stores the embedding of a question in the cache, and now and then removes the entries beyond its limits';

create or replace function rag._embed_query(query_text text, model text) returns vector
  language plpgsql volatile
  -- SECURITY DEFINER: a searching role may use the cache and the model, but must not write an embedding
  -- of its own into the cache, because others would get it.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _recovery  constant boolean := pg_is_in_recovery();
  -- At a stricter isolation level, an entry just made by another session would cause a serialization error.
  _writable  constant boolean := not _recovery and current_setting('transaction_read_only') = 'off'
                                 and current_setting('transaction_isolation') = 'read committed'
                                 and rag.get('query_cache_entries')::integer > 0;
  _model     rag.models;
  _key       bytea;
  _used_at   timestamptz;
  _embedding rag._query_cache.embedding%type;
begin
  select * into strict _model from rag.models m where m.name = _embed_query.model;
  _key := sha256(_model.sha256 || convert_to(_model.query_prefix || _embed_query.query_text, 'UTF8'));
  -- The table is unlogged, and a standby cannot read unlogged tables.
  if not _recovery then
    select c.embedding, c.last_used_at into _embedding, _used_at
      from rag._query_cache c
     where c.key = _key and c.last_used_at > now() - rag.get('query_cache_days')::integer * interval '1 day';
  end if;
  if _embedding is null then
    _embedding := rag._embed(_model.query_prefix || _embed_query.query_text, _model.name);
    if _writable then
      perform rag._remember_query(_key, _embedding);
    end if;
  elsif _writable then
    perform nextval('rag._query_cache_hits_seq');
    -- At most once a minute, so that a frequent question does not cause an update for each search.
    if _used_at < now() - interval '1 minute' then
      update rag._query_cache c set last_used_at = clock_timestamp()
      where c.key = (select o.key from rag._query_cache o where o.key = _key for update skip locked);
    end if;
  end if;
  return _embedding;
end
$plpgsql$;
comment on function rag._embed_query(text, text) is
  'the embedding of a question; if it is in the cache, no Python is started';

create or replace view rag.query_cache as
  select e.entries, e.max_entries, e.max_age, e.oldest_use, s.hits, s.misses,
         round(s.hits / nullif(s.hits + s.misses, 0)::numeric, 3) as hit_rate
    from (select count(*) as entries, rag.get('query_cache_entries')::integer as max_entries,
                 rag.get('query_cache_days')::integer * interval '1 day' as max_age, min(c.last_used_at) as oldest_use
            from rag._query_cache c) e,
         (select h.last_value + h.is_called::integer as hits, m.last_value + m.is_called::integer as misses
            from rag._query_cache_hits_seq h, rag._query_cache_misses_seq m) s;
comment on view rag.query_cache is
  'number of entries in the cache of query embeddings, its limits, and the share of searches that found theirs in it. The counts begin'
  ' anew after a crash; searches in read-only transactions are not counted';
