CREATE OR REPLACE VIEW memory AS
WITH parts AS (
    SELECT record_id, 'overall' AS phase, NULL::INTEGER AS rank, peak_bytes, NULL::BIGINT AS peak_rss_bytes,
           NULL::BIGINT AS anon_bytes, NULL::BIGINT AS pss_bytes, NULL::BIGINT AS tensor_bytes, NULL::BIGINT AS baseline_bytes,
           NULL::BIGINT AS cuda_allocated_bytes, NULL::BIGINT AS cuda_reserved_bytes, NULL::BIGINT AS cuda_process_bytes,
           NULL::BIGINT AS cache_bytes
    FROM base.memory
    UNION ALL BY NAME
    SELECT p.record_id, p.phase, NULL::INTEGER AS rank, any_value(p.peak_bytes) AS peak_bytes,
           sum(r.peak_rss_bytes)::BIGINT AS peak_rss_bytes, sum(r.anon_bytes)::BIGINT AS anon_bytes,
           sum(r.pss_bytes)::BIGINT AS pss_bytes, sum(r.tensor_bytes)::BIGINT AS tensor_bytes,
           sum(r.baseline_bytes)::BIGINT AS baseline_bytes, sum(r.cuda_allocated_bytes)::BIGINT AS cuda_allocated_bytes,
           sum(r.cuda_reserved_bytes)::BIGINT AS cuda_reserved_bytes,
           if(count(*) = count(r.cuda_process_bytes), sum(r.cuda_process_bytes), NULL)::BIGINT AS cuda_process_bytes,
           if(count(*) = count(r.cache_bytes), sum(r.cache_bytes), NULL)::BIGINT AS cache_bytes
    FROM base.memory_phases p
    LEFT JOIN base.memory_ranks r ON r.record_id = p.record_id AND r.phase = p.phase
    GROUP BY p.record_id, p.phase
    UNION ALL BY NAME
    FROM base.memory_ranks
), measured AS (
    SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
           m.engine, m.ranks, _workload(c.settings) AS workload, coalesce(c.settings ->> '$.dtype', '') AS asked,
           p.* EXCLUDE (record_id), m.source AS measure, m.kernel,
           m.device, m.dtype, m.threads, m.parity_l2, m.wraps_only, m.notes, c.machine, c.place, c.started_at, c.record_id
    FROM _cells c
    JOIN base.memory m USING (record_id)
    JOIN parts p USING (record_id)
)
SELECT v.* EXCLUDE (asked, place), d.peak_bytes AS dense_peak_bytes, v.peak_bytes / d.peak_bytes AS ratio
FROM measured v
LEFT JOIN measured d ON d.method = 'dense' AND d.manifest = v.manifest AND d.model = v.model AND d.engine = v.engine
                    AND d.ranks = v.ranks AND d.workload = v.workload AND d.asked = v.asked AND d.phase = v.phase AND d.machine = v.machine
                    AND d.place IS NOT DISTINCT FROM v.place AND d.rank IS NOT DISTINCT FROM v.rank;

COMMENT ON VIEW memory IS 'peak memory of each variant alone: per phase, per rank and summed over ranks; overall has peak_bytes alone';
COMMENT ON COLUMN memory.engine IS 'deepspeed, deepspeed-zero3 (parameters gathered layer by layer), hf (plain transformers), sparse (kernels that skip zeros), skip (reads only the weights that a token needs), llamacpp, or a plugin''s';
COMMENT ON COLUMN memory.phase IS 'load, forward, encode, prefill, decode, generate; overall is the largest of all but load';
COMMENT ON COLUMN memory.rank IS 'index of the rank; NULL for the sum over ranks';
COMMENT ON COLUMN memory.peak_bytes IS 'peak above the process''s size before the model, bytes';
COMMENT ON COLUMN memory.peak_rss_bytes IS 'peak resident size of the process, bytes';
COMMENT ON COLUMN memory.anon_bytes IS 'anonymous memory at the end of the phase, bytes';
COMMENT ON COLUMN memory.pss_bytes IS 'proportional set size (PSS) of the ranks and their child processes at the end of the phase, bytes';
COMMENT ON COLUMN memory.tensor_bytes IS 'parameters and buffers, each storage once, bytes';
COMMENT ON COLUMN memory.baseline_bytes IS 'resident size after imports, before the model, bytes';
COMMENT ON COLUMN memory.cuda_allocated_bytes IS 'peak that PyTorch allocated on the GPU, bytes';
COMMENT ON COLUMN memory.cuda_reserved_bytes IS 'peak that PyTorch reserved on the GPU, bytes';
COMMENT ON COLUMN memory.cuda_process_bytes IS 'memory that the processes hold on the GPU at the end of the phase, CUDA''s own part included, bytes; where NVML does not say, as in a container, all that is taken of the GPU; NULL on a CPU';
COMMENT ON COLUMN memory.cache_bytes IS 'keys and values (or states) kept for the next token, at the end of the phase, bytes; NULL where the model keeps them to itself (generate), and in records from before 2026-11-29';
COMMENT ON COLUMN memory.measure IS 'where peak_bytes was read';
COMMENT ON COLUMN memory.dtype IS 'number format in which it ran';
COMMENT ON COLUMN memory.dense_peak_bytes IS 'peak_bytes of the dense model, same engine, ranks, workload, phase and machine; NULL where it was not measured';
COMMENT ON COLUMN memory.ratio IS 'peak_bytes / dense_peak_bytes';
