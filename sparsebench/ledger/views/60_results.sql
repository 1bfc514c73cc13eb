-- Each variant's numbers at the first engine, ranks, workload and number format that its manifest names for the model. All are of one
-- machine: of those with this workspace's own records, else of all, the newest that has times, or else the newest.
CREATE OR REPLACE VIEW _runtime AS
WITH asked AS (
    SELECT record_id, coalesce(settings ->> '$.dtype', '') AS asked, own FROM base.records
), timed AS (
    SELECT l.manifest, l.variant_id, any_value(l.model) AS model, l.machine, max(l.started_at) AS started_at, bool_or(own) AS own,
           sum(ms) FILTER (phase IN ('forward', 'encode', 'prefill')) AS prefill_ms, sum(ms) FILTER (phase = 'decode') AS decode_ms
    FROM latency l
    JOIN asked USING (record_id)
    JOIN _first_runtime f USING (manifest, model, engine, ranks, workload, asked)
    GROUP BY l.manifest, l.variant_id, l.machine, l.record_id
    QUALIFY row_number() OVER (PARTITION BY l.manifest, l.variant_id, l.machine ORDER BY max(l.started_at) DESC, l.record_id) = 1
), peaks AS (
    SELECT manifest, variant_id, model, machine, started_at, peak_bytes, own
    FROM memory
    JOIN asked USING (record_id)
    JOIN _first_runtime USING (manifest, model, engine, ranks, workload, asked)
    WHERE phase = 'overall'
    QUALIFY row_number() OVER (PARTITION BY manifest, variant_id, machine ORDER BY started_at DESC, record_id) = 1
)
SELECT manifest, variant_id, machine, f.engine, f.ranks, f.workload, prefill_ms, decode_ms, peak_bytes
FROM timed
FULL JOIN peaks USING (manifest, variant_id, model, machine)
JOIN _first_runtime f USING (manifest, model)
QUALIFY row_number() OVER (PARTITION BY manifest, variant_id
    ORDER BY NOT coalesce(greatest(timed.own, peaks.own), false), timed.started_at IS NULL,
        greatest(timed.started_at, peaks.started_at) DESC, machine) = 1;

CREATE OR REPLACE VIEW results AS
WITH variants AS (
    SELECT manifest, variant_id, any_value(model) AS model, any_value(family) AS family, any_value(weights) AS weights,
           any_value(recipe) AS recipe, any_value(method) AS method, any_value(granularity) AS granularity, any_value(pattern) AS pattern,
           any_value(sparsity) AS sparsity, any_value(seed) AS seed, any_value(calibration) AS calibration,
           any_value(dtype) AS dtype, arg_max(machine, started_at) AS machine
    FROM _cells
    WHERE status = 'done' AND variant_id NOT IN (FROM _without_skill)
    GROUP BY manifest, variant_id
), achieved AS (
    SELECT manifest, variant_id, any_value(achieved) AS achieved
    FROM _cells
    JOIN base.makings USING (record_id)
    GROUP BY ALL
), counted AS (
    SELECT manifest, variant_id, sum(zeros) / sum(count) AS zero_share FROM tensors WHERE prunable GROUP BY ALL
), fastest AS (
    -- The engine that makes a token of the variant fastest, on the first workload that has one.
    SELECT manifest, variant_id, machine, workload, arg_min(engine, ms) AS fastest_engine, min(ms) AS fastest_decode_ms,
           max(best_16_ms) AS best_dense_decode_ms
    FROM throughput
    WHERE phase = 'decode'
    GROUP BY manifest, variant_id, machine, workload
    QUALIFY row_number() OVER (PARTITION BY manifest, variant_id ORDER BY max(started_at) DESC, workload) = 1
), stored AS (
    SELECT manifest, variant_id, max(bytes) FILTER (format = 'dense') AS bytes_dense,
           max(bytes) FILTER (format = 'packed') AS bytes_packed, max(bytes) FILTER (format = 'archive') AS bytes_archive
    FROM sizes
    GROUP BY ALL
)
SELECT v.manifest, v.variant_id, v.model, v.family, v.weights, v.recipe, v.method, v.granularity, v.pattern, v.sparsity,
       coalesce(a.achieved, k.zero_share) AS achieved_sparsity, v.seed, v.calibration, v.dtype,
       coalesce(r.machine, s.machine, v.machine) AS machine, s.task, s.metric, s.higher_is_better, s.score, s.collapsed, s.low,
       s.high, s.n, s.limited, s.num_fewshot,
       s.chance, coalesce(c.dense_score, CASE WHEN v.method = 'dense' THEN s.score END) AS dense_score, c.retained,
       c.retained_low, c.retained_high,
       c.verdict, c.tests, c.q, c.q_tests, c.detectable, c.loss_at_most, c.loses_less, c.documents_to_clear, s.floor,
       s.bits_per_byte,
       z.bytes_dense, z.bytes_packed, z.bytes_archive, r.engine, r.ranks, r.workload, r.prefill_ms, r.decode_ms, r.peak_bytes,
       t.fastest_engine, t.fastest_decode_ms, t.best_dense_decode_ms, t.best_dense_decode_ms / t.fastest_decode_ms AS speedup_over_best
FROM variants v
LEFT JOIN scores s USING (manifest, variant_id)
LEFT JOIN vs_dense c USING (manifest, variant_id, record_id)
LEFT JOIN achieved a USING (manifest, variant_id)
LEFT JOIN counted k USING (manifest, variant_id)
LEFT JOIN stored z USING (manifest, variant_id)
LEFT JOIN _runtime r USING (manifest, variant_id)
LEFT JOIN (SELECT * EXCLUDE (machine, workload) FROM fastest) t USING (manifest, variant_id);

COMMENT ON VIEW results IS 'the main numbers: one row per variant and task; a variant without scores has one row with a NULL task';
COMMENT ON COLUMN results.achieved_sparsity IS 'share of the prunable weights that is exactly zero in the written file, 0 to 1';
COMMENT ON COLUMN results.machine IS 'class of hardware of the runtime numbers; without them, of the score';
COMMENT ON COLUMN results.task IS 'benchmark; NULL for a variant without scores';
COMMENT ON COLUMN results.metric IS 'metric, as in scores';
COMMENT ON COLUMN results.score IS 'the metric''s value, in its own unit, as in scores';
COMMENT ON COLUMN results.collapsed IS 'true where the score is beyond metrics.collapsed_above, as in scores';
COMMENT ON COLUMN results.chance IS 'score of a model without skill';
COMMENT ON COLUMN results.num_fewshot IS 'examples in the prompt; NULL is the task''s default';
COMMENT ON COLUMN results.retained_low IS 'lower end of the 95% interval of retained';
COMMENT ON COLUMN results.verdict IS 'better, worse, no difference detected, at chance, collapsed or invalid, as in vs_dense';
COMMENT ON COLUMN results.tests IS 'tasks of this variant that were tested: the family that the verdict is corrected for (Holm)';
COMMENT ON COLUMN results.q IS 'p of the difference from dense after Benjamini and Hochberg''s correction across all tests of the manifest';
COMMENT ON COLUMN results.detectable IS 'smallest true difference from dense that such a sample shows with a power of 80% at p < 0.05, in the metric''s unit';
COMMENT ON COLUMN results.loss_at_most IS 'largest loss against dense that the documents leave possible (one-sided 95%), in the metric''s unit';
COMMENT ON COLUMN results.loses_less IS 'whether the variant is shown to lose less than one point of a score, or 2% of a perplexity';
COMMENT ON COLUMN results.documents_to_clear IS 'documents that make loses_less true with a power of 80%, as in vs_dense';
COMMENT ON COLUMN results.floor IS 'best score without skill (see floors); NULL where none was measured';
COMMENT ON COLUMN results.bits_per_byte IS 'a perplexity''s mean negative log-likelihood, bits per byte of text, as in scores';
COMMENT ON COLUMN results.bytes_dense IS 'weight files as safetensors, bytes';
COMMENT ON COLUMN results.bytes_packed IS 'weight files in the packed format, bytes';
COMMENT ON COLUMN results.bytes_archive IS 'weight files in the archive format, bytes';
COMMENT ON COLUMN results.engine IS 'the first engine that the manifest names for the model; the others are in latency and memory';
COMMENT ON COLUMN results.ranks IS 'the first number of ranks that the manifest names for the model';
COMMENT ON COLUMN results.workload IS 'the first workload that the manifest names for the model: b sequences of p prompt tokens, then g new tokens each';
COMMENT ON COLUMN results.prefill_ms IS 'median time to the first new token, ms (encoder: the whole forward pass; encoder-decoder: encoding included)';
COMMENT ON COLUMN results.decode_ms IS 'median time of one more token, ms';
COMMENT ON COLUMN results.peak_bytes IS 'peak memory above the process''s size before the model, summed over ranks, bytes';
COMMENT ON COLUMN results.fastest_engine IS 'engine, of those measured, that makes a token of the variant fastest';
COMMENT ON COLUMN results.fastest_decode_ms IS 'its median time of one more token, ms';
COMMENT ON COLUMN results.best_dense_decode_ms IS 'shortest time of one more token of the dense model in floats, over all engines on that machine and workload, ms';
COMMENT ON COLUMN results.speedup_over_best IS 'best_dense_decode_ms / fastest_decode_ms: over the best dense engine, as in throughput';
