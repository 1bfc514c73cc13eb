-- What a rank's process holds on its GPU, which torch's own figures do not count whole.
ALTER TABLE base.memory_ranks ADD COLUMN cuda_process_bytes BIGINT;
