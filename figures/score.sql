-- title: Score against sparsity
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: series
-- facet: facet
-- bound: bound
-- reference: chance = chance; dense = dense
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: score
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; average precision: bootstrap). The point at 0% is the dense model. Grey: random masks, which know nothing.

WITH scored AS (
    SELECT sparsity, score, low, high, chance, method, pattern LIKE '%:%' AS nm, pattern, granularity, way, seed, started_at, manifest,
           concat(model_label(model, weights), chr(10), task, ' (', metric, if(limited, ', first ' || n, ''), ')') AS facet
    FROM scores
    JOIN ways USING (variant_id)
    -- Perplexity, which explodes, has a figure of its own.
    WHERE weights <> 'random' AND metric <> 'perplexity'
    -- The first documents only: left out where the whole task was scored as well.
    QUALIFY NOT limited OR NOT bool_or(NOT limited) OVER (PARTITION BY variant_id, task)
), named AS (
    -- N:M patterns, which fix the sparsity, share a line, unless several fix the same one.
    SELECT *, method_label(method, if(nm, '', granularity), CASE WHEN NOT nm OR count(DISTINCT pattern)
                  OVER (PARTITION BY manifest, facet, method, nm, way, sparsity) > 1 THEN pattern ELSE 'N:M' END) || way AS how
    FROM scored
), dense AS (
    SELECT * FROM named WHERE method = 'dense'
), lines AS (
    SELECT s.*, d.score AS dense, s.how || if(count(DISTINCT s.seed) OVER () > 1, ', seed ' || s.seed, '') AS series,
           regexp_matches(s.method, '^random(\+|$)') AS bound
    FROM named s
    JOIN dense d USING (manifest, facet)
    WHERE s.method <> 'dense'
), points AS (
    FROM lines
    UNION ALL BY NAME
    -- Every line begins at the dense model.
    SELECT d.*, d.score AS dense, coalesce(l.series, 'dense') AS series, coalesce(l.bound, false) AS bound
    FROM dense d
    LEFT JOIN (SELECT DISTINCT manifest, facet, series, bound FROM lines) l USING (manifest, facet)
)
SELECT sparsity, score, low, high, chance, dense, series, facet, bound
FROM points
QUALIFY row_number() OVER (PARTITION BY facet, series, sparsity ORDER BY started_at DESC, manifest) = 1
ORDER BY facet, bound, series, sparsity;
