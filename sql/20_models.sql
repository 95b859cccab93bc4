-- The built-in model, and embedding with any model.

insert into rag.models (name, provider, dimension, max_tokens, pooling, normalize, location, sha256, builtin)
values ('all-MiniLM-L6-v2', 'onnx', @model_dimension@, @model_max_tokens@, 'mean', true,
        'all-MiniLM-L6-v2', decode('@model_sha256@', 'hex'), true)
on conflict (name) do update
  set provider = excluded.provider, dimension = excluded.dimension, max_tokens = excluded.max_tokens,
      pooling = excluded.pooling, normalize = excluded.normalize, location = excluded.location,
      sha256 = excluded.sha256, builtin = true;

create or replace function rag.embed(content text, model text default null) returns vector
  language plpgsql stable parallel restricted
  -- SECURITY DEFINER: callers may not call Python themselves. Here they can do so only with an existing model.
  security definer
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
comment on function rag.embed(text, text) is
  'the embedding of a text by a model (default: the model of the active pipeline); it has the model''s dimension and the length 1. A text'
  ' longer than the model''s max_tokens is cut there, with a notice. Raises 42704 for an unknown model';
