-- Threads are set per process, so one environment can have several: they belong to the record.
ALTER TABLE base.records ADD COLUMN threads INTEGER;
UPDATE base.records r SET threads = e.threads FROM base.environments e WHERE e.environment_id = r.environment_id;
ALTER TABLE base.environments DROP COLUMN threads;
