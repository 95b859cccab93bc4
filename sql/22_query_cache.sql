-- The embeddings of recent questions: a question is embedded once, then taken from the cache.

create or replace function rag._evict_queries(max_entries integer, max_age interval) returns bigint
  language sql
  set search_path = pg_catalog, pg_temp
as $sql$
  -- Rows that another transaction has in hand are left to the next: a search waits for no search.
  with gone as (
  delete from rag._query_cache c
   where c.key = any (array(
           select o.key
             from rag._query_cache o
            where o.last_used_at < now() - max_age
               or o.last_used_at <= (select e.last_used_at from rag._query_cache e order by e.last_used_at desc offset max_entries limit 1)
              for update skip locked))
  returning 1)
  select count(*) from gone
$sql$;
comment on function rag._evict_queries(integer, interval) is
  'drops the least recently used query embeddings beyond the bounds of number and age; returns how many';

create or replace function rag._remember_query(key bytea, embedding vector) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _max_entries constant integer := rag.get('query_cache_entries');
begin
  -- Two searches for the same at once: on conflict would make the second wait for the first to commit.
  if not pg_try_advisory_xact_lock(('x' || left(encode(_remember_query.key, 'hex'), 16))::bit(64)::bigint) then
    return;
  end if;
  insert into rag._query_cache (key, embedding, last_used_at)
  values (_remember_query.key, _remember_query.embedding, clock_timestamp())
  on conflict on constraint _query_cache_pkey do update
    set embedding = excluded.embedding, last_used_at = excluded.last_used_at;
  -- Not each time: the cache may be over its bound by a sixty-fourth.
  if nextval('rag._query_cache_misses_seq') % greatest(_max_entries / 64, 1) = 0 then
    perform rag._evict_queries(_max_entries, rag.get('query_cache_days')::integer * interval '1 day');
  end if;
end
$plpgsql$;
comment on function rag._remember_query(bytea, vector) is
  'puts the embedding of a query into the cache, and every so often what is too much out of it';

create or replace function rag._embed_query(query_text text, model text) returns vector
  language plpgsql volatile
  -- SECURITY DEFINER: a searching role may use the cache and the model, but must not be able to
  -- write an embedding of its own making into the cache, from which others would be served.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _recovery  constant boolean := pg_is_in_recovery();
  -- At a stricter isolation an entry that another session has just made would be an error.
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
  -- An unlogged table cannot even be read on a standby.
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
    -- A query that everyone asks must not become a hot row.
    if _used_at < now() - interval '1 minute' then
      update rag._query_cache c set last_used_at = clock_timestamp()
      where c.key = (select o.key from rag._query_cache o where o.key = _key for update skip locked);
    end if;
  end if;
  return _embedding;
end
$plpgsql$;
comment on function rag._embed_query(text, text) is 'embedding of a query, from the cache where it is there, which takes no Python';

create or replace view rag.query_cache as
  select e.entries, e.max_entries, e.max_age, e.oldest_use, s.hits, s.misses,
         round(s.hits / nullif(s.hits + s.misses, 0)::numeric, 3) as hit_rate
    from (select count(*) as entries, rag.get('query_cache_entries')::integer as max_entries,
                 rag.get('query_cache_days')::integer * interval '1 day' as max_age, min(c.last_used_at) as oldest_use
            from rag._query_cache c) e,
         (select h.last_value + h.is_called::integer as hits, m.last_value + m.is_called::integer as misses
            from rag._query_cache_hits_seq h, rag._query_cache_misses_seq m) s;
comment on view rag.query_cache is
  'how full the cache of query embeddings is, and the share of searches it has served since the last crash or restart from one; those in'
  ' read-only transactions are not counted';
