-- Answers of 200 tokens, computed from the measured times of the prompt and of a token: of each model the variant that passes the quality
-- gate and would be through first, of those that are shown to gain on a token. The speed is over the fastest dense engine.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
)
SELECT a.model, a.weights, r.words AS recipe, engine, workload, tokens, ms, dense_ms, speedup, rivals
FROM _long_answers a
JOIN asked USING (variant_id)
JOIN gate g USING (variant_id)
JOIN _recipes r USING (variant_id)
WHERE g.passes AND gains AND rivals > 1 AND NOT r.chance
QUALIFY row_number() OVER (PARTITION BY a.model, a.weights ORDER BY speedup DESC, workload, words, engine) = 1
ORDER BY a.model
