-- title: Perplexity against sparsity
-- finding: finding
-- about: where perplexity rises, method by method, until a model is ruined
-- kind: line
-- x: sparsity
-- y: ratio
-- series: method
-- place: place
-- bound: bound
-- facet: panel
-- reference: gate = quality gate
-- columns: 2
-- yscale: log
-- knee: 3
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity / dense's
-- note: Pruning alone; of each method and sparsity the best granularity and calibration text, on the largest sample of text. Intervals: in the results. A point at 0% is dense. Axes are not linear. Grey ground: above three times dense's perplexity a model is ruined, and by how much means nothing. Lines join what was measured and end at their first point there.
-- boundnote: Grey line: random masks.

WITH every_sample AS (
    SELECT model, weights, split_part(method, '+', 1) AS method, round(sparsity, 4) AS sparsity, score, dense, n, bound
    FROM curves c
    WHERE scale = 'perplexity' AND sparsity > 0 AND pattern = 'unstructured' AND method NOT IN ('dense', 'elsa')
        AND variant_id NOT IN (FROM _more_than_zeros)
), scored AS (
    FROM every_sample QUALIFY n = max(n) OVER (PARTITION BY model, weights)
), best AS (
    FROM scored QUALIFY row_number() OVER (PARTITION BY model, weights, method, sparsity ORDER BY score, dense) = 1
), ended AS (
    SELECT *, score / dense AS times,
           coalesce(max(times) OVER (PARTITION BY model, weights, method
               ORDER BY sparsity ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 1) AS before
    FROM best
), drawn AS (
    SELECT model, weights, method, sparsity, times AS ratio, bound, n FROM ended WHERE before <= 3
    UNION ALL BY NAME
    -- A line from dense to a method whose first point is far away would tell where it crosses the gate, which nobody measured.
    SELECT DISTINCT model, weights, method, 0::DOUBLE AS sparsity, 1::DOUBLE AS ratio, bound, n FROM ended WHERE sparsity <= 0.3
), spent AS (
    -- The sparsity from which on every measured method ruins the model, on whatever sample.
    SELECT model, weights, min(sparsity) FILTER (best_beyond > 3) AS sparsity
    FROM (SELECT model, weights, sparsity,
        min(score / dense) OVER (PARTITION BY model, weights ORDER BY sparsity DESC) AS best_beyond FROM every_sample
            WHERE NOT bound)
    GROUP BY model, weights
), half AS (
    SELECT model, weights, min(times) AS least, format('{} ×{:.2f}', arg_min(method, times), min(times)) AS words
    FROM ended
    WHERE sparsity = 0.5 AND NOT bound
    GROUP BY model, weights
), passing AS (
    -- The most zeros that some method leaves within the gate.
    SELECT model, weights, max(sparsity) AS most
    FROM (SELECT model, weights, sparsity, min(times) AS least FROM ended WHERE NOT bound GROUP BY ALL)
    WHERE least <= 1.1
    GROUP BY model, weights
)
SELECT d.sparsity, ratio, method, bound, 1.1::DOUBLE AS gate, _method_place(method) AS place,
       concat(if(count(DISTINCT weights) OVER (PARTITION BY model) > 1, model_label(model, weights), model), ', ', n, ' windows',
           chr(10) || '50%: ' || words, '; from ' || percent_label(s.sparsity) || '% all ruined') AS panel,
       (SELECT coalesce((SELECT format('The best method: {}% zeros pass the quality gate, 50% cost {} times dense''s perplexity',
           range_label('{:.0f}', 100 * min(most), 100 * max(most)), times)
                         FROM passing HAVING count(*) = (SELECT count(*) FROM half)),
                        format('Half of the weights at zero cost {} times dense''s perplexity at best', times))
        FROM (SELECT range_label('{:.1f}', min(least), max(least)) AS times FROM half HAVING min(least) > 1.1)) AS finding
FROM drawn d
LEFT JOIN half h USING (model, weights)
LEFT JOIN spent s USING (model, weights)
ORDER BY panel, bound, place, d.sparsity;
