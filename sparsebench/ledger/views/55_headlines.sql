-- What runs the dense model of an engine: that of hf, sparse, skip and deepspeed is plain torch's.
CREATE OR REPLACE MACRO _dense_engine(engine) AS
    CASE WHEN engine = 'llamacpp' THEN 'llama.cpp' WHEN regexp_matches(engine, '^(hf|sparse|skip|deepspeed)') THEN 'plain torch' ELSE engine END;

-- The median over jobs, as jobs of one setting differ: each that timed a variant timed the dense model beside it.
CREATE OR REPLACE VIEW _dense_times AS
SELECT model, weights, machine, workload, phase, median(coalesce(dense_ms, ms)) AS ms, dtype, _dense_engine(engine) AS name
FROM latency
WHERE method = 'dense' OR dense_ms IS NOT NULL
GROUP BY model, weights, machine, workload, phase, dtype, name, ranks, threads
UNION ALL
SELECT model, weights, machine, workload, phase, median(ms), dtype, 'our dense kernels' AS name
FROM _own_dense
GROUP BY model, weights, machine, workload, phase, dtype, name, ranks, threads;

-- Speed-ups for headlines: over the fastest that ran the dense model in floats on the same machine and workload, in whatever manifest
-- (`rival`). Where that ran the dense model of the pair too, in the same number format, the paired ratio counts: jobs of one setting differ.
-- So it does where its own dense model was the faster one.
-- Of several jobs of one setting the one that gains least on a request counts: the best would be the luckiest.
-- `gains`: a gain is shown over both. `loses`: a loss over the rival is shown, beyond the noise as a gain. `rivals`: how many ran the dense model
-- there. `shown`: the speed-up as tables have it, with a question mark where neither a gain nor a loss is shown.
CREATE OR REPLACE VIEW _headlines AS
WITH fastest AS (
    SELECT model, weights, machine, workload, phase, min(ms) AS best_ms, arg_min(name, ms) AS rival,
           arg_min(dtype, ms) AS rival_dtype, count(DISTINCT name) FILTER (name <> 'our dense kernels') AS rivals
    FROM _dense_times
    GROUP BY ALL
)
SELECT l.* EXCLUDE (speedup, speedup_low, speedup_high), rivals,
       if((fastest.rival, rival_dtype) <> (_dense_engine(engine), dtype), least(1, best_ms / dense_ms), 1) AS rate,
       CASE WHEN rate < 1 THEN fastest.rival WHEN fastest.rival IS NOT NULL THEN _dense_engine(engine) END AS rival,
       l.speedup AS paired, l.speedup * rate AS speedup, l.speedup_low * rate AS speedup_low, l.speedup_high * rate AS speedup_high,
       coalesce(verdict = 'faster' AND (rate = 1 OR l.speedup * rate > 1.1 AND l.speedup_low * rate > 1), false) AS gains,
       coalesce(if(rate = 1, verdict = 'slower', l.speedup * rate < 1 / 1.1 AND l.speedup_high * rate < 1), false) AS loses,
       format('×{:.2f}{}', l.speedup * rate, if(gains OR loses, '', '?')) AS shown
FROM latency l
LEFT JOIN fastest USING (model, weights, machine, workload, phase)
QUALIFY record_id = first_value(record_id) OVER (PARTITION BY variant_id, machine, engine, ranks, threads, l.dtype, workload
                                                ORDER BY phase NOT IN ('generate', 'forward'), l.speedup * rate NULLS LAST, record_id);
