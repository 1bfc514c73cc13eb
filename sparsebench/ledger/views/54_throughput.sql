-- The size that an engine reads: packed where it reads packed weights, else the files as they are. `bits` is the number format of the
-- whole model: floats where no step rounds weights.
CREATE OR REPLACE VIEW _formats AS
WITH quantized AS (
    SELECT variant_id, arg_max(name, position) AS name, max(value) FILTER (name = 'gguf' AND field = 'type') AS type,
           bool_and(step = 'quantize') AS alone
    FROM steps
    GROUP BY variant_id
    HAVING bool_or(step = 'quantize')
), made AS (
    SELECT variant_id, any_value(parameters) AS parameters FROM base.makings JOIN _counted USING (record_id) GROUP BY variant_id
)
SELECT z.variant_id, max(z.bytes) FILTER (format = 'dense') AS dense_bytes, max(z.bytes) FILTER (format = 'packed') AS packed_bytes,
       TRY_CAST(regexp_extract(coalesce(any_value(type), any_value(name)), '\d+') AS INTEGER) AS rounded,
       coalesce(any_value(alone), true) AS alone,
       coalesce(any_value(parameters),
           max(z.bytes) FILTER (format = 'dense') / if(any_value(z.dtype) IN ('bfloat16', 'float16'), 2, 4)) AS parameters
FROM sizes z
LEFT JOIN quantized USING (variant_id)
LEFT JOIN made USING (variant_id)
GROUP BY z.variant_id;

-- An engine that skips zeros runs the dense model in its own dense kernels here (`own`), where that was timed.
CREATE OR REPLACE VIEW throughput AS
WITH timed AS (
    SELECT l.*, coalesce(rounded, 16) AS bits,
           if(engine = 'sparse' AND method <> 'dense', packed_bytes, dense_bytes) AS weight_bytes, parameters,
           -- Dense: no zeros and no other shapes, whatever its number format.
           method = 'dense' OR (alone AND rounded IS NOT NULL) AS whole,
           CAST(regexp_extract(workload, '^b(\d+)', 1) AS INTEGER) AS sequences,
           CAST(regexp_extract(workload, ' p(\d+)', 1) AS INTEGER) AS prompt,
           CAST(regexp_extract(workload, ' g(\d+)', 1) AS INTEGER) AS generated
    FROM (FROM latency UNION ALL BY NAME SELECT *, true AS own FROM _own_dense) l
    LEFT JOIN _formats USING (variant_id)
    QUALIFY row_number() OVER (PARTITION BY l.manifest, l.variant_id, engine, ranks, workload, l.dtype, phase, machine
        ORDER BY own, started_at DESC, record_id) = 1
), best AS (
    SELECT manifest, model, machine, workload, phase, min(ms) FILTER (bits = 16) AS best_16_ms,
           arg_min(engine || ', ' || dtype, ms) FILTER (bits = 16) AS best_16,
           min(ms) FILTER (bits = 8) AS best_8_ms, arg_min(engine, ms) FILTER (bits = 8) AS best_8,
           min(ms) FILTER (bits = 4) AS best_4_ms, arg_min(engine, ms) FILTER (bits = 4) AS best_4
    FROM timed
    WHERE whole
    GROUP BY ALL
)
SELECT manifest, variant_id, model, weights, method, sparsity, engine, ranks, workload, phase,
       CASE phase WHEN 'decode' THEN 'tg' WHEN 'generate' THEN format('{} + {}', prompt, generated) WHEN 'load' THEN 'load'
           ELSE 'pp ' || prompt END AS test,
       ms, CASE WHEN phase = 'decode' THEN sequences
           WHEN phase IN ('prefill', 'forward') THEN sequences * prompt END * 1000 / ms AS tokens_per_second,
       8 * weight_bytes / parameters AS bits_per_weight,
       CASE WHEN phase = 'decode' AND sequences = 1 AND dtype <> 'float32' THEN weight_bytes / ms / 1e6 END AS gb_per_second,
       gb_per_second / read_gb_per_second AS share_of_reading,
       speedup, best_16_ms / ms AS speedup_over_best, best_16_ms, best_16, best_8_ms, best_8, best_4_ms, best_4,
       kernel, dtype, threads, steady, machine, started_at, record_id
FROM timed
LEFT JOIN best USING (manifest, model, machine, workload, phase);

COMMENT ON VIEW throughput IS 'times in the units of llama.cpp''s users, and beside the fastest engine that was measured for the dense model on the same machine and workload (that of sparse in its own dense kernels, where these were timed): one row per variant, engine, ranks, workload, number format and phase, the newest';
COMMENT ON COLUMN throughput.phase IS 'as in latency';
COMMENT ON COLUMN throughput.test IS 'pp N: a prompt of N tokens; tg: one new token; N + M: a whole request of N prompt and M new tokens; load';
COMMENT ON COLUMN throughput.ms IS 'wall time of one step, ms, as in latency; of generate the whole request without loading';
COMMENT ON COLUMN throughput.tokens_per_second IS 'tokens read (pp) or made (tg) in a second; NULL for load and whole requests';
COMMENT ON COLUMN throughput.bits_per_weight IS 'bytes of the weight file that the engine loads, in bits, over all parameters, embeddings included';
COMMENT ON COLUMN throughput.gb_per_second IS 'bytes of that file over the time of one new token of one sequence, GB/s; NULL where weights run in float32';
COMMENT ON COLUMN throughput.share_of_reading IS 'gb_per_second over what the machine read without any arithmetic in the same job (read_gb_per_second of latency); NULL in older records';
COMMENT ON COLUMN throughput.speedup IS 'over the dense model in the same engine, paired, as in latency';
COMMENT ON COLUMN throughput.speedup_over_best IS 'best_16_ms / ms: over the fastest engine for the dense model in floats; the two were not timed in turns unless the engine is the same';
COMMENT ON COLUMN throughput.best_16_ms IS 'shortest time of the dense model in floats, of all engines and ranks measured on this machine, ms';
COMMENT ON COLUMN throughput.best_16 IS 'engine and number format of best_16_ms';
COMMENT ON COLUMN throughput.best_8_ms IS 'the same of the dense model in 8 bits (int8, Q8_0), without zeros and smaller shapes';
COMMENT ON COLUMN throughput.best_8 IS 'engine of best_8_ms';
COMMENT ON COLUMN throughput.best_4_ms IS 'the same in 4 bits (int4, Q4_0, Q4_K_M)';
COMMENT ON COLUMN throughput.best_4 IS 'engine of best_4_ms';
COMMENT ON COLUMN throughput.kernel IS 'as in latency';
COMMENT ON COLUMN throughput.dtype IS 'as in latency';
COMMENT ON COLUMN throughput.threads IS 'as in latency';
COMMENT ON COLUMN throughput.steady IS 'as in latency';
