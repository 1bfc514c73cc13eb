-- title: Perplexity against sparsity
-- finding: finding
-- about: where perplexity rises, method by method, until a model is ruined
-- kind: line
-- x: sparsity
-- y: ratio
-- series: method
-- place: place
-- bound: bound
-- apart: apart
-- facet: panel
-- reference: dense = dense; gate = quality gate; ruined = ruined
-- columns: 2
-- yscale: log
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity / dense's
-- note: Pruning alone; of each method and sparsity the best granularity and calibration text, on the largest sample of text. Intervals: in the results. The point at 0% is dense. Lines end behind the first point above three times dense's perplexity: the model is ruined, and by how much means nothing (above 30 times a point stands at 30).
-- boundnote: Grey: sparsities at which every method is ruined, drawn at 30; random masks.

WITH scored AS (
    SELECT model, weights, split_part(method, '+', 1) AS method, round(sparsity, 4) AS sparsity, score, low, high, dense, n, bound
    FROM curves c
    WHERE scale = 'perplexity' AND sparsity > 0 AND pattern = 'unstructured' AND method NOT IN ('dense', 'elsa') AND variant_id NOT IN (FROM _more_than_zeros)
    QUALIFY n = max(n) OVER (PARTITION BY model, weights)
), best AS (
    FROM scored QUALIFY row_number() OVER (PARTITION BY model, weights, method, sparsity ORDER BY score, dense) = 1
), ended AS (
    SELECT *, score / dense AS times, coalesce(max(times) OVER (PARTITION BY model, weights, method ORDER BY sparsity ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 1) AS before
    FROM best
), drawn AS (
    SELECT model, weights, method, sparsity, least(times, 30)::DOUBLE AS ratio, bound, n, false AS apart FROM ended WHERE before <= 3
    UNION ALL BY NAME
    SELECT DISTINCT model, weights, method, 0::DOUBLE AS sparsity, 1::DOUBLE AS ratio, bound, n, false AS apart FROM ended
    UNION ALL BY NAME
    SELECT model, weights, 'all ruined' AS method, sparsity, 30::DOUBLE AS ratio, true AS bound, any_value(n) AS n, true AS apart FROM ended GROUP BY model, weights, sparsity HAVING min(before) > 3
)
SELECT sparsity, ratio, method, bound, apart, 1::DOUBLE AS dense, 1.1::DOUBLE AS gate, 3::DOUBLE AS ruined, concat(model, ', ', n, ' windows', chr(10) || half) AS panel,
       coalesce(list_position(['magnitude', 'sparsegpt', 'wanda', 'alps', 'ria', 'random'], method), 7) - 1 AS place,
       (SELECT format('Half of the weights at zero cost {} times dense''s perplexity at best; beyond, models are soon ruined', range_label('{:.1f}', min(times), max(times)))
        FROM (SELECT model, min(times) AS times FROM ended WHERE sparsity = 0.5 AND NOT bound GROUP BY model) HAVING min(times) > 1.1) AS finding
FROM drawn
LEFT JOIN (SELECT model, weights, '50%: ' || array_to_string(list(format('{} ×{:.2f}', method, times) ORDER BY times)[:2], ', ') AS half FROM ended WHERE sparsity = 0.5 AND NOT bound AND times <= 3 GROUP BY ALL) USING (model, weights)
ORDER BY panel, bound, place, sparsity;
