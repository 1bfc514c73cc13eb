-- title: Score against sparsity
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: series
-- facet: facet
-- reference: chance = chance; dense = dense
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: score
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; average precision: bootstrap). The point at 0% is the dense model.

WITH scored AS (
    SELECT manifest, model, task, sparsity, score, low, high, chance, method, n,
           method_label(method, granularity, pattern) AS series,
           concat(model_label(model, weights), chr(10), task, ' (', metric, if(limited, ', first ' || n, ''), ')') AS facet
    FROM scores
    WHERE weights <> 'random'
), lines AS (
    SELECT s.*, d.score AS dense
    FROM scored s
    JOIN scored d ON d.method = 'dense' AND d.manifest = s.manifest AND d.facet = s.facet
), starts AS (
    -- Every line begins at the dense model.
    SELECT DISTINCT d.manifest, d.model, d.task, d.sparsity, d.score, d.low, d.high, d.chance, d.method, d.n,
           coalesce(s.series, 'dense') AS series, d.facet, d.dense
    FROM lines d
    LEFT JOIN lines s ON s.manifest = d.manifest AND s.facet = d.facet AND s.method <> 'dense'
    WHERE d.method = 'dense'
)
SELECT sparsity, any_value(score) AS score, any_value(low) AS low, any_value(high) AS high, any_value(chance) AS chance,
       any_value(dense) AS dense, series, facet
FROM (FROM lines WHERE method <> 'dense' UNION ALL BY NAME FROM starts)
GROUP BY facet, series, sparsity
ORDER BY facet, series, sparsity;
