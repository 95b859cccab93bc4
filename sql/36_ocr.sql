-- Text recognition (OCR) of pages that are pictures.

create or replace function rag._require_ocr(languages text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set standard_conforming_strings = 'on'
as $plpgsql$
declare
  _found record;
begin
  -- Null means that nothing changes. Names that Tesseract cannot have are refused by the table's check.
  if _require_ocr.languages is null or _require_ocr.languages = 'off'
     or _require_ocr.languages !~ '^[A-Za-z]\w{2,30}(\+[A-Za-z]\w{2,30}){0,9}$' then
    return;
  end if;
  select * into _found from rag._ocr_problem(_require_ocr.languages);
  if _found.problem is not null then
    raise exception 'pages cannot be recognised in "%"', _require_ocr.languages
      using errcode = 'undefined_object',
            detail  = _found.problem,
            hint    = _found.hint;
  end if;
end
$plpgsql$;
comment on function rag._require_ocr(text) is 'raises 42704 if the server''s Tesseract does not have these languages';

create or replace function rag.set_ocr(languages text, pipeline text default 'active') returns bigint
  language plpgsql
  -- SECURITY DEFINER: only functions of ragstone may write pipelines and jobs.
  security definer
  set search_path = pg_catalog, pg_temp
as $plpgsql$
declare
  _pipeline rag.pipelines := rag._locked_pipeline(set_ocr.pipeline);
  _queued   bigint := 0;
  _batch    bigint;
begin
  perform rag._require_ocr(set_ocr.languages);
  begin
    update rag.pipelines p set ocr = set_ocr.languages where p.pipeline_id = _pipeline.pipeline_id;
  exception when check_violation or not_null_violation then
    raise exception 'these are not names of languages: "%"', coalesce(set_ocr.languages, 'null')
      using errcode = 'invalid_parameter_value',
            hint    = 'Type Tesseract''s names: select rag.set_ocr(''eng+deu''); or turn it off: select rag.set_ocr(''off'');';
  end;
  -- When it is turned off, text that was recognised before stays.
  if set_ocr.languages <> 'off' then
    update rag.document_versions v
       set fingerprint = null
      from rag.documents d
     where d.source_id = v.source_id and d.document_id = v.document_id
       and v.pipeline_id = _pipeline.pipeline_id and v.state = 'ready'
       and _pipeline.ocr <> set_ocr.languages
       and d.extracted ?| '{pages_without_text,pages_recognised}';
    loop
      _batch := rag._queue_outdated();
      exit when _batch = 0;
      _queued := _queued + _batch;
    end loop;
    -- This is done even if the languages are the same: a worker may have read a document while they changed.
    _queued := _queued + rag.retry(pipeline => _pipeline.name, error_code => 'no_text');
  end if;
  return _queued;
end
$plpgsql$;
comment on function rag.set_ocr(text, text) is
  'turns on text recognition for pages that are pictures, in languages by Tesseract''s names such as eng or eng+deu; off turns it off.'
  ' Documents without text, or with pages without text, are read again; their number is returned. Raises 42704 for a language that is not'
  ' installed or an unknown pipeline, 22023 for an invalid name of a language';
