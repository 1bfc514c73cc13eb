-- The longest prompt that more than one engine read for the dense model: fewer bits that pass the quality gate, each in its fastest engine,
-- over the fastest dense engine there.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
)
SELECT h.model, r.words AS recipe, h.engine, h.rival, h.workload, regexp_extract(h.workload, '^b1 p(\d+) ', 1)::INTEGER AS tokens,
       h.speedup, h.shown, h.gains, h.loses
FROM _headlines h
JOIN asked USING (variant_id)
JOIN gate g USING (variant_id)
JOIN _recipes r USING (variant_id)
WHERE h.phase = 'prefill' AND h.ranks = 1 AND h.rivals > 1 AND r.kind = 'bits' AND g.passes AND h.workload LIKE 'b1 p%'
QUALIFY tokens = max(tokens) OVER ()
    AND row_number() OVER (PARTITION BY h.model, h.weights, r.words, tokens ORDER BY h.speedup DESC, h.engine, h.record_id) = 1
ORDER BY h.model, h.speedup DESC, r.words
