-- title: Score against sparsity, method by method
-- finding: finding
-- about: how much of a score is left, method by method, on the task of each model that was measured most
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- apart: apart
-- reference: chance = chance; int8 = int8; dense = dense
-- columns: 2
-- footnote: left_out
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: score
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; else bootstrap). The point at 0% is dense. A line ends at chance, or where its score is not told from it. Of each method and sparsity the best granularity and calibration text. int8: the level of dense in 8 bits, where the same documents were scored.
-- boundnote: Grey: random masks, the baseline.

WITH shown AS (
    -- Perplexity explodes and has a figure of its own; a task on which dense itself is not above chance shows nothing.
    SELECT *, split_part(method, '+', 1) AS name FROM curves
    WHERE scale <> 'perplexity' AND NOT dense_at_chance AND pattern = 'unstructured' AND NOT resized
        AND method NOT IN ('dense', 'elsa') AND variant_id NOT IN (FROM _more_than_zeros)
          AND task NOT IN (SELECT task FROM scores WHERE separable IS false)
), counted AS (
    -- Two metrics of one task are one benchmark; of several samples the largest counts.
    SELECT model, weights, _benchmark(task) AS benchmark, sparsity, bool_and(kept) AS kept
    FROM (SELECT model, weights, task, sparsity, n, bool_or(NOT _lost(verdict)) AS kept FROM shown
        WHERE NOT bound AND verdict IS NOT NULL GROUP BY model, weights, task, sparsity, n
          QUALIFY n = max(n) OVER (PARTITION BY model, weights, task, sparsity))
    GROUP BY ALL
), best AS (
    FROM shown QUALIFY row_number() OVER (PARTITION BY panel, name, sparsity ORDER BY _goodness(score, higher_is_better) DESC, line) = 1
), ended AS (
    SELECT *, coalesce(bool_or(_at_chance(low, high, chance, higher_is_better)) OVER (PARTITION BY panel, name
               ORDER BY sparsity ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false) AS after,
           count(*) OVER (PARTITION BY panel) AS points
    FROM best
), chosen AS (
    FROM ended QUALIFY panel = first_value(panel) OVER (PARTITION BY model, weights ORDER BY points DESC, n DESC, panel)
), kept AS (
    SELECT *, dense_rank() OVER (ORDER BY points DESC, panel) <= 4 AS shown FROM chosen
), drawn AS (
    SELECT panel, name, bound, sparsity, score, low, high, false AS apart FROM kept WHERE shown AND NOT after
    UNION ALL BY NAME
    SELECT DISTINCT panel, name, bound, 0::DOUBLE AS sparsity, dense AS score, false AS apart FROM kept WHERE shown
)
SELECT sparsity, score, low, high, name AS line, bound, apart, chance, dense, int8, panel,
       _method_place(name) AS place,
       (SELECT format('By pruning alone, some method shows no loss on {} of {} benchmarks at 50% zeros, on {} of {} at 90% (perplexity apart)',
                      count(*) FILTER (kept AND round(sparsity, 4) = 0.5), nullif(count(*) FILTER (round(sparsity, 4) = 0.5), 0),
                      count(*) FILTER (kept AND round(sparsity, 4) = 0.9), nullif(count(*) FILTER (round(sparsity, 4) = 0.9), 0))
                          FROM counted) AS finding,
       (SELECT 'Not drawn: ' || string_agg(DISTINCT model, ', ' ORDER BY model) || ', with the fewest points.' FROM kept
           WHERE NOT shown) AS left_out
FROM drawn
JOIN (SELECT panel, any_value(chance) AS chance, any_value(dense) AS dense FROM kept GROUP BY panel) USING (panel)
LEFT JOIN (SELECT panel, any_value(c.score) AS int8 FROM curves c JOIN _recipes USING (variant_id) WHERE words = 'int8'
    GROUP BY panel) USING (panel)
ORDER BY panel, bound, place, sparsity;
