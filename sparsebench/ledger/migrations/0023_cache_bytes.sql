ALTER TABLE base.memory_ranks ADD COLUMN cache_bytes BIGINT;
