-- Where a pipeline had chunks and no lexeme in any of them, this was 0, which weights are divided by.
update rag._pipeline_statistics s set average_length = 1 where s.average_length < 1;
alter table rag._pipeline_statistics add constraint average_length_divides check (average_length >= 1);
