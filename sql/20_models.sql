-- The built-in model, and embedding with any model.

insert into rag.models (name, provider, dimension, max_tokens, pooling, normalize, location, sha256, builtin)
values ('all-MiniLM-L6-v2', 'onnx', @model_dimension@, @model_max_tokens@, 'mean', true,
        'all-MiniLM-L6-v2', decode('@model_sha256@', 'hex'), true)
on conflict (name) do update
  set provider = excluded.provider, dimension = excluded.dimension, max_tokens = excluded.max_tokens,
      pooling = excluded.pooling, normalize = excluded.normalize, location = excluded.location,
      sha256 = excluded.sha256, builtin = true;

create or replace function rag._embed(content text, model text) returns vector
  language plpython3u stable strict parallel restricted
as $python$
@boot@
from ragstone.api import embed
return embed(plpy, content, model)
$python$;
comment on function rag._embed(text, text) is 'embedding by the named model; no prefix, no cache';

create or replace function rag.embed(content text, model text default null) returns vector
  language plpgsql stable parallel restricted
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _model text := coalesce(embed.model, (select p.model from rag.pipelines p where p.state = 'active'));
begin
  if embed.content is null then
    return null;
  end if;
  perform from rag.models m where m.name = _model;
  if not found then
    raise exception 'there is no model "%"', _model
      using errcode = 'undefined_object',
            hint    = 'Models are listed by: select name, dimension from rag.models;';
  end if;
  return rag._embed(embed.content, _model);
end
$plpgsql$;
comment on function rag.embed(text, text) is 'embedding of a text by a model (default: that of the active pipeline), of the model''s dimension and length 1; a text over the model''s max_tokens is cut there, with a notice; raises 42704 for an unknown model';

create or replace function rag._embed_query(query_text text, model text) returns vector
  language plpgsql volatile
  -- SECURITY DEFINER: a searching role may use the cache and the model, but must not be able to
  -- write an embedding of its own making into the cache, from which others would be served.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _hash      bytea   := sha256(convert_to(_embed_query.query_text, 'UTF8'));
  _recovery  boolean := pg_is_in_recovery();
  _writable  boolean := not _recovery and current_setting('transaction_read_only') = 'off'
                        and rag.get('query_cache_entries')::integer > 0;
  _cached    record;
  _embedding rag._query_cache.embedding%type;
begin
  -- An unlogged table cannot even be read on a standby.
  if not _recovery then
    select c.embedding, c.last_used_at < now() - interval '1 hour' as stale
      into _cached
      from rag._query_cache c
     where c.model = _embed_query.model and c.query_hash = _hash;
    if found then
      if _cached.stale and _writable then
        update rag._query_cache c set last_used_at = now() where c.model = _embed_query.model and c.query_hash = _hash;
      end if;
      return _cached.embedding;
    end if;
  end if;

  select rag._embed(m.query_prefix || _embed_query.query_text, m.name)
    into strict _embedding
    from rag.models m
   where m.name = _embed_query.model;
  if _writable then
    insert into rag._query_cache (model, query_hash, embedding)
    values (_embed_query.model, _hash, _embedding)
    on conflict on constraint _query_cache_pkey do nothing;
  end if;
  return _embedding;
end
$plpgsql$;
comment on function rag._embed_query(text, text) is 'embedding of a query, from the cache where it is there';
