CREATE OR REPLACE VIEW speedups AS
WITH measured AS (
    SELECT l.* REPLACE (line || if(count(DISTINCT seed) OVER () > 1, ', seed ' || seed, '') AS line),
           concat(model_label(model, weights), chr(10), phase, ', ', workload_label(workload),
                  -- What was timed in two number formats has a panel for each.
                  if(count(DISTINCT dtype) OVER (PARTITION BY model, workload, phase, machine) > 1, ', ' || dtype, ''),
                  if(count(DISTINCT machine) OVER () > 1,
                      ', ' || if(count(DISTINCT machine_label(machine)) OVER () = count(DISTINCT machine) OVER (),
                          machine_label(machine), machine), '')) AS panel
    FROM (FROM latency JOIN ways USING (variant_id)) l
    -- Loading is timed once, generating is prefill and decode again.
    WHERE phase NOT IN ('generate', 'load')
), points AS (
    SELECT * FROM measured WHERE method <> 'dense'
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.* REPLACE (coalesce(l.line, d.line) AS line, coalesce(d.kernel_speedup, d.speedup) AS speedup,
                        if(d.kernel_speedup IS NULL, d.speedup_low, NULL) AS speedup_low,
                        if(d.kernel_speedup IS NULL, d.speedup_high, NULL) AS speedup_high)
    FROM measured d
    LEFT JOIN (SELECT DISTINCT manifest, panel, engine, ranks, line FROM measured
        WHERE method <> 'dense') l USING (manifest, panel, engine, ranks)
    WHERE method = 'dense'
)
SELECT manifest, variant_id, model, weights, method, granularity, pattern, sparsity, seed, line, engine, kernel, ranks, dtype,
       workload, phase, panel, speedup,
       speedup_low, speedup_high, zeros_speedup, zeros_speedup_low, zeros_speedup_high, zeros_bound, verdict, machine, started_at
FROM points
WHERE speedup IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY panel, engine, ranks, line, sparsity ORDER BY started_at DESC, manifest) = 1;

COMMENT ON VIEW speedups IS 'speed-ups over dense as figures draw them: one line per method, engine and ranks, which begins at the dense model; the newest where several manifests have a point';
COMMENT ON COLUMN speedups.line IS 'name of the line: method, granularity or pattern, inputs, seed';
COMMENT ON COLUMN speedups.engine IS 'as in latency';
COMMENT ON COLUMN speedups.dtype IS 'as in latency';
COMMENT ON COLUMN speedups.phase IS 'forward (encoder), encode, prefill (to the first new token), decode (one new token)';
COMMENT ON COLUMN speedups.panel IS 'the panel that the line belongs to: model, phase and workload, the number format and the machine where there are several';
COMMENT ON COLUMN speedups.speedup IS 'time of the dense model / the variant''s; for dense, the dense model against itself (the noise), or kernel_speedup where that was timed';
COMMENT ON COLUMN speedups.speedup_low IS 'lower end of the 95% interval of speedup';
COMMENT ON COLUMN speedups.zeros_speedup IS 'as in latency';
COMMENT ON COLUMN speedups.zeros_speedup_low IS 'as in latency';
COMMENT ON COLUMN speedups.zeros_speedup_high IS 'as in latency';
COMMENT ON COLUMN speedups.zeros_bound IS 'as in latency';
COMMENT ON COLUMN speedups.verdict IS 'as in latency';
