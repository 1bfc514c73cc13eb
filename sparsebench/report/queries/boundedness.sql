-- The time of a token in the dense model: read together in prefill, and one at a time in decode.
WITH phases AS (
    SELECT model, weights, machine, engine, ranks, threads, dtype, workload,
           regexp_extract(workload, 'b(\d+)', 1)::INTEGER AS batch, regexp_extract(workload, 'p(\d+)', 1)::INTEGER AS prompt,
           median(ms) FILTER (phase = 'prefill') AS prefill_ms, median(ms) FILTER (phase = 'decode') AS decode_ms
    FROM latency
    WHERE method = 'dense' AND family = 'decoder' /* manifests */
    GROUP BY ALL
)
SELECT *, batch * prompt AS together, prefill_ms / (batch * prompt) AS prefill_token_ms, decode_ms / batch AS decode_token_ms,
       (decode_ms / batch) / (prefill_ms / (batch * prompt)) AS ratio
FROM phases
WHERE prefill_ms IS NOT NULL AND decode_ms IS NOT NULL
ORDER BY weights = 'random', model, machine, engine, ranks, threads, dtype, workload
