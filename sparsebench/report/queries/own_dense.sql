-- What a user of llama.cpp gains there: of each model the variant that passes the quality gate and answers a request, or reads a text, fastest
-- over the dense model in llama.cpp itself. Only gains that a test shows count.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
)
SELECT l.model, l.weights, r.words AS recipe, l.workload, l.phase, l.speedup, l.speedup_low, l.speedup_high
FROM latency l
JOIN asked USING (variant_id)
JOIN gate g USING (variant_id)
JOIN _recipes r USING (variant_id)
WHERE l.engine = 'llamacpp' AND l.ranks = 1 AND l.phase IN ('generate', 'forward') AND l.verdict = 'faster' AND l.method <> 'dense' AND g.passes
QUALIFY row_number() OVER (PARTITION BY l.model, l.weights ORDER BY l.speedup DESC, r.words, l.record_id) = 1
ORDER BY l.model, l.weights
