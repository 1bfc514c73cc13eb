-- title: Perplexity against sparsity
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: series
-- facet: facet
-- reference: dense = dense; broken = broken
-- yscale: log
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity (lower is better)
-- note: Whiskers: 95% intervals, bootstrap over windows of text. Above 10,000 a model is broken, and the order of methods means nothing. The point at 0% is the dense model.

WITH scored AS (
    SELECT sparsity, score, low, high, 1e4 AS broken, method, seed, started_at, manifest,
           method_label(method, granularity, if(pattern = 'unstructured', pattern, 'N:M')) AS how,
           concat(model_label(model, weights), chr(10), task, ' (', metric, if(limited, ', first ' || n || ' windows', ''), ')') AS facet
    FROM scores
    WHERE weights <> 'random' AND metric = 'perplexity'
    -- The first windows only: left out where the whole task was scored as well.
    QUALIFY NOT limited OR NOT bool_or(NOT limited) OVER (PARTITION BY variant_id, task)
), dense AS (
    SELECT * FROM scored WHERE method = 'dense'
), lines AS (
    SELECT s.*, d.score AS dense, s.how || if(count(DISTINCT s.seed) OVER () > 1, ', seed ' || s.seed, '') AS series
    FROM scored s
    JOIN dense d USING (manifest, facet)
    WHERE s.method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.*, d.score AS dense, coalesce(l.series, 'dense') AS series
    FROM dense d
    LEFT JOIN (SELECT DISTINCT manifest, facet, series FROM lines) l USING (manifest, facet)
)
SELECT sparsity, score, low, high, dense, broken, series, facet
FROM points
QUALIFY row_number() OVER (PARTITION BY facet, series, sparsity ORDER BY started_at DESC, manifest) = 1
ORDER BY facet, series, sparsity;
