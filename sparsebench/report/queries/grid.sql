-- Pruning alone, task by task: dense's score beside that of the methods that were measured most (random masks are left out), at five
-- sparsities. A cell has a score for each of `methods`, in that order: it passes the quality gate on this task (✓), is below it without
-- a loss that a test shows (≈), shows a loss (✗), or is ruined (☠).
-- Where all are ruined (`ruined`) the best of their scores stands for them, with its method's raised initial; where all pass nearly alike
-- their range. The best granularity and calibration text of each method counts. `kept`, `ratio`: the best method's skill kept, perplexity over dense's.
WITH asked AS (
    SELECT DISTINCT variant_id, method, round(sparsity, 4) AS sparsity
    FROM cells
    WHERE weights <> 'random' AND pattern = 'unstructured' AND NOT regexp_matches(method, '^(dense|random|elsa)|\+') /* manifests */
    AND round(sparsity, 4) IN (0.1, 0.5, 0.9, 0.95, 0.99) AND variant_id NOT IN (FROM _more_than_zeros)
), judged AS (
    SELECT s.model, s.weights, s.task, s.n, s.scale, s.higher_is_better, s.chance, s.variant_id, a.method, a.sparsity, s.score,
           v.dense_score, v.retained, v.ratio,
           CASE WHEN _useless(s.collapsed, s.at_chance, v.retained_high, v.ratio) THEN '☠'
               WHEN coalesce(v.retained >= 0.95, v.ratio <= 1.1) THEN '✓'
                WHEN _lost(v.verdict) THEN '✗' ELSE '≈' END AS mark
    FROM scores s
    JOIN vs_dense v USING (manifest, record_id)
    JOIN asked a ON a.variant_id = s.variant_id
    -- A second metric of the same answers (g2p_per) says little more.
    WHERE NOT s.dense_at_chance AND coalesce(v.retained, v.ratio) IS NOT NULL AND _benchmark(s.task) = s.task
    -- A task on which a model without skill did as well as some dense model says nothing of the others either.
          AND s.task NOT IN (SELECT task FROM scores WHERE separable IS false)
), sampled AS (
    -- One sample for a task: the one with most cells, then the largest; where it has no cell, the next.
    FROM (SELECT *, count(DISTINCT concat(method, sparsity)) OVER (PARTITION BY model, weights, task, n) AS cells FROM judged)
    QUALIFY (cells, n) = max((cells, n)) OVER (PARTITION BY model, weights, task, sparsity)
), best AS (
    SELECT *, CASE WHEN scale <> 'perplexity' THEN format('{:.3f}', score) WHEN score < 100 THEN format('{:.1f}', score)
                   WHEN score < 1e4 THEN format('{:,.0f}', score) ELSE replace(format('{:.0e}', score), 'e+0', 'e') END AS written
    FROM sampled
    QUALIFY row_number() OVER (PARTITION BY model, weights, task, method, sparsity
        ORDER BY _goodness(score, higher_is_better) DESC, variant_id) = 1
), compared AS (
    SELECT method, row_number() OVER (ORDER BY list_position(['magnitude', 'wanda', 'sparsegpt'], method) NULLS LAST, method) AS place
    FROM (SELECT method FROM best GROUP BY method ORDER BY count(*) DESC, method LIMIT 3)
), cells AS (
    SELECT p.*, method, place, mark, score, retained, ratio, written, _goodness(score, higher_is_better) AS goodness,
           -- The best of several is bold.
           translate(left(method, 1), 'abcdeghilmnoprstuvw', 'ᵃᵇᶜᵈᵉᵍʰⁱˡᵐⁿᵒᵖʳˢᵗᵘᵛʷ') AS initial,
           if(goodness = max(goodness) OVER one AND goodness > min(goodness) OVER one, '**' || written || '**', written) AS marked
    FROM (SELECT model, weights, task, scale, n, sparsity, max(dense_score) AS whole, max(chance) AS chance,
        any_value(higher_is_better) AS higher_is_better FROM best GROUP BY model, weights, task, scale, n, sparsity) p
    CROSS JOIN compared
    LEFT JOIN (SELECT model, weights, task, sparsity, method, mark, score, retained, ratio, written
        FROM best) USING (model, weights, task, sparsity, method)
    WINDOW one AS (PARTITION BY p.model, p.weights, p.task, p.scale, p.n, p.sparsity)
)
SELECT model, weights, task, n, if(higher_is_better, '', ' ↓') AS arrow,
       format(if(scale = 'perplexity', '{:.1f}', '{:.3f}'), whole) AS dense, format('{:.3g}', chance) AS chance, sparsity,
       list(method ORDER BY place) AS methods, coalesce(bool_and(mark = '☠'), false) AS ruined,
       bool_and(coalesce(mark, '✓') = '✓') AS passing, max(retained) AS kept, min(ratio) AS ratio,
       CASE WHEN bool_and(mark = '☠') THEN concat('☠ ', arg_max(written, goodness),
           arg_max(initial, (goodness, -place)) FILTER (goodness IS NOT NULL))
            WHEN count(mark) > 1 AND bool_and(coalesce(mark, '') = '✓')
            AND max(score) - min(score) < 0.025 * whole THEN concat('✓ ', arg_min(written, score), '–', arg_max(written, score))
            ELSE string_agg(coalesce(mark || ' ' || marked, '–'), ' / ' ORDER BY place) END AS shown
FROM cells
GROUP BY model, weights, task, scale, n, higher_is_better, whole, chance, sparsity
ORDER BY model, scale = 'perplexity', task, sparsity
