-- Latency from several processes: which one took a step, what differed within and between them, and what decides where models lie.
ALTER TABLE base.latency_samples ADD COLUMN process INTEGER;
ALTER TABLE base.latency_differences ADD COLUMN processes INTEGER;
ALTER TABLE base.latency_differences ADD COLUMN within_sd DOUBLE;
ALTER TABLE base.latency_differences ADD COLUMN between_sd DOUBLE;
ALTER TABLE base.latency ADD COLUMN placement VARCHAR;
ALTER TABLE base.latency ADD COLUMN stolen DOUBLE;
