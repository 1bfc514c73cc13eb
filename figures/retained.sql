-- title: How much of each task's skill the best pruning method keeps
-- finding: finding
-- about: what pruning keeps of dense's skill, task by task, with chance at 0 and dense at 100%, so that tasks compare
-- kind: line
-- x: sparsity
-- y: retained
-- low: low
-- high: high
-- series: task
-- place: place
-- facet: panel
-- reference: zero = chance; gate = quality gate; one = dense
-- columns: 2
-- footnote: left_out
-- yshare: yes
-- xscale: sparsity
-- yscale: percent
-- xlabel: sparsity of the prunable weights, %
-- ylabel: skill kept, %
-- note: (score - chance) / (dense score - chance) of the method that keeps most at each sparsity, by pruning alone. Whiskers: 95% intervals of that ratio, paired by document. A line ends at chance, or where a score is not told from it; what is far below is drawn at -25%. Above 100% a variant scores above dense. Tasks on which dense itself is not above chance are left out.

WITH sampled AS (
    -- Of a task that was scored on several samples: the largest on which 90% zeros or more were, or the largest.
    SELECT *, max(sparsity) OVER (PARTITION BY panel) >= 0.9 AS covered
    FROM _pruned_curves
    WHERE retained IS NOT NULL AND pattern = 'unstructured' AND NOT bound
          -- A task on which a model without skill did as well as some dense model says nothing of the others either.
          AND task NOT IN (SELECT task FROM scores WHERE separable IS false)
), best AS (
    FROM (FROM sampled QUALIFY (covered, n) = max((covered, n)) OVER (PARTITION BY model, weights, task, metric))
    QUALIFY row_number() OVER (PARTITION BY model, weights, task, sparsity ORDER BY retained DESC, line) = 1
), ended AS (
    SELECT *, coalesce(retained_low, retained) <= 0.01 AS gone,
           coalesce(bool_or(gone) OVER (PARTITION BY model, weights, task
               ORDER BY sparsity ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false) AS after
    FROM best
), drawn AS (
    SELECT *, dense_rank() OVER (ORDER BY task) AS number, count(*) OVER (PARTITION BY model, weights) AS points FROM ended WHERE NOT after
), fullest AS (
    SELECT model, weights, row_number() OVER (ORDER BY any_value(points) DESC, model, weights) <= 4 AS shown FROM drawn GROUP BY model, weights
), benchmarks AS (
    -- Two metrics of one task are one benchmark, not told from chance where neither is.
    SELECT model, weights, _benchmark(task) AS benchmark, bool_and(gone) AS lost FROM ended WHERE round(sparsity, 4) = 0.9 GROUP BY ALL
)
SELECT sparsity, greatest(retained, -0.25) AS retained, greatest(retained_low, -0.25) AS low,
       greatest(retained_high, -0.25) AS high, task, 7 + number AS place,
       0::DOUBLE AS zero, 0.95::DOUBLE AS gate, 1::DOUBLE AS one, model_label(model, weights) AS panel,
       (SELECT format('By pruning alone the best method keeps {}% of dense''s skill at 50% zeros',
           range_label('{:.0f}', 100 * min(retained) FILTER (round(sparsity, 4) = 0.5),
               100 * max(retained) FILTER (round(sparsity, 4) = 0.5)))
               || coalesce((SELECT format('; at 90% it is not told from chance on {} of {} benchmarks', count(*) FILTER (lost),
                   count(*)) FROM benchmarks HAVING count(*) > 0), '') FROM best) AS finding,
       (SELECT 'Not drawn: ' || string_agg(model, ', ' ORDER BY model) || ', with the fewest points.' FROM fullest WHERE NOT shown) AS left_out
FROM drawn
JOIN fullest USING (model, weights)
WHERE shown
ORDER BY panel, task, sparsity;
