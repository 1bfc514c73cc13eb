CREATE OR REPLACE VIEW samples AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       l.engine, l.ranks, l.dtype, _workload(c.settings) AS workload, s.phase, s.side, s.process, s.block, s.index,
       1000 * s.wall_s AS ms, 1000 * s.cpu_s AS cpu_ms,
       c.machine, c.started_at, c.record_id
FROM _cells c
JOIN base.latency l USING (record_id)
JOIN base.latency_samples s USING (record_id)
-- The samples of an engine's kernel without zeros are behind latency.kernel_speedup.
WHERE coalesce(c.settings ->> '$.forced', '') <> 'true';

COMMENT ON VIEW samples IS 'every timed step behind latency: of the variant, and of the dense model in the same job';
COMMENT ON COLUMN samples.engine IS 'as in latency';
COMMENT ON COLUMN samples.dtype IS 'number format in which it ran';
COMMENT ON COLUMN samples.phase IS 'phase, as in latency';
COMMENT ON COLUMN samples.side IS 'variant, or the dense model that ran beside it';
COMMENT ON COLUMN samples.process IS 'the process that took the step; NULL in older records';
COMMENT ON COLUMN samples.block IS 'block of steps in a process; dense and variant take turns block by block';
COMMENT ON COLUMN samples.index IS 'step within the block';
COMMENT ON COLUMN samples.ms IS 'wall time of the step, of the slowest rank, ms';
COMMENT ON COLUMN samples.cpu_ms IS 'CPU time of the step over all threads and ranks, ms';
