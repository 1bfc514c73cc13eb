-- Tasks that disagree: of each model the variant by pruning alone that keeps least of dense's skill on one task (`lost`) where another
-- task of the same variant (`kept`) scores no worse than dense. Tasks on which dense itself is at chance do not count.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' AND variant_id NOT IN (FROM _more_than_zeros) /* manifests */
), judged AS (
    SELECT s.variant_id, s.model, s.weights, r.words, s.sparsity, _benchmark(s.task) AS benchmark, s.task, s.n, s.score,
           v.dense_score, v.retained, _lost(v.verdict) OR s.at_chance AS lost,
           _goodness(v.difference, s.higher_is_better) >= 0 AS kept
    FROM scores s
    JOIN asked USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    JOIN _recipes r USING (variant_id)
    WHERE NOT s.dense_at_chance AND s.task NOT IN (SELECT task FROM scores WHERE separable IS false) AND v.retained IS NOT NULL AND NOT r.chance
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
)
SELECT l.model, l.weights, l.words, l.sparsity, k.task AS kept, k.score AS kept_score, k.dense_score AS kept_dense,
       l.task AS lost, l.score AS lost_score, l.dense_score AS lost_dense, l.retained
FROM judged l
JOIN judged k ON k.variant_id = l.variant_id AND k.benchmark <> l.benchmark
WHERE l.lost AND k.kept AND NOT k.lost
QUALIFY row_number() OVER (PARTITION BY l.model, l.weights ORDER BY l.retained, k.retained DESC, l.words, l.variant_id, l.task, k.task) = 1
ORDER BY l.retained, l.model
