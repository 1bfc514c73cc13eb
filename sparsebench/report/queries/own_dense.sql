-- What a user of llama.cpp gains there: of each model the variant that passes the quality gate and answers a request, or reads a text, fastest
-- over the dense model in llama.cpp itself, on the workload on which most engines ran dense. Only gains that a test shows count.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), timed AS (
    SELECT h.model, h.weights, r.words AS recipe, h.workload, h.phase, l.speedup, l.verdict, h.record_id,
           first_value(h.workload) OVER (PARTITION BY h.model, h.weights ORDER BY h.rivals DESC, h.workload) AS usual
    FROM _headlines h
    JOIN latency l USING (record_id, phase)
    JOIN asked ON asked.variant_id = h.variant_id
    JOIN gate g ON g.variant_id = h.variant_id
    JOIN _recipes r ON r.variant_id = h.variant_id
    WHERE h.engine = 'llamacpp' AND h.ranks = 1 AND h.phase IN ('generate', 'forward') AND g.passes
)
SELECT * EXCLUDE (verdict, record_id, usual)
FROM timed
WHERE workload = usual AND verdict = 'faster'
QUALIFY row_number() OVER (PARTITION BY model, weights ORDER BY speedup DESC, recipe, record_id) = 1
ORDER BY model, weights
