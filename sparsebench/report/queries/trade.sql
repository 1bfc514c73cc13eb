-- Savings against losses: at each sparsity the fewest benchmarks on which an unstructured variant of the model shows a loss, and the
-- packed file's share of dense. Tasks on which some dense model is at chance do not count. A score that is not above chance counts as a loss,
-- whatever the test says. Random masks are left out. A variant that was scored on smaller samples than another of its sparsity has fewer
-- chances to show a loss, so the variants with the most tasks on the largest sample compete. A recipe with one calibration and seed is one
-- variant, whatever its ids: they also tell apart how the same dense weights were fetched.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
    -- Zeros alone: fewer bits and smaller shapes are not sparsity.
    AND variant_id NOT IN (FROM _more_than_zeros)
), judged AS (
    SELECT s.model, s.weights, (r.recipe, r.calibration, r.seed) AS variant, s.sparsity, _lost(v.verdict) OR s.at_chance AS lost,
           _benchmark(s.task) AS benchmark, s.task, s.n
    FROM scores s
    JOIN asked USING (variant_id)
    JOIN variants r USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.pattern = 'unstructured' AND s.method <> 'random' AND NOT s.dense_at_chance
        AND s.task NOT IN (SELECT task FROM scores WHERE separable IS false)
    QUALIFY row_number() OVER (PARTITION BY s.model, s.weights, variant, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), best AS (
    SELECT model, weights, variant, sparsity, count(DISTINCT benchmark) AS tasks, count(DISTINCT benchmark) FILTER (lost) AS losses
    FROM (SELECT *, n = max(n) OVER (PARTITION BY model, weights, sparsity, task) AS largest FROM judged)
    GROUP BY model, weights, variant, sparsity
    QUALIFY row_number() OVER (PARTITION BY model, weights, sparsity ORDER BY tasks DESC, count(*) FILTER (largest) DESC, losses) = 1
), files AS (
    SELECT model, weights, sparsity, avg(share ORDER BY share) AS packed
    FROM (SELECT DISTINCT variant_id, model, weights, sparsity, share FROM sizes WHERE pattern = 'unstructured' AND format = 'packed')
    JOIN asked USING (variant_id)
    GROUP BY ALL
)
SELECT model, weights, sparsity, tasks, losses, packed
FROM best
LEFT JOIN files USING (model, weights, sparsity)
ORDER BY model, sparsity, weights
