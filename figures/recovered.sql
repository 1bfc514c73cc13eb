-- title: Perplexity against sparsity, one-shot and trained
-- finding: finding
-- about: how far training during or after pruning lowers the perplexity
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: line
-- place: place
-- facet: panel
-- apart: alone
-- reference: dense = dense; collapsed = collapsed
-- columns: 2
-- yscale: log
-- knee: 10000
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity (lower is better)
-- note: Pruning alone: magnitude, and the methods that trained variants began with. A line has the best variant of its name at each sparsity, whichever settings it had. Whiskers: 95% intervals, by Student's t over windows.

WITH trained AS (
    SELECT variant_id, parent FROM variants WHERE trained_tokens IS NOT NULL
), named AS (
    -- A training after pruning is named by its steps, whatever was pruned; one during pruning, and pruning alone, by the method.
    SELECT c.*, collapsed_above, t.variant_id IS NOT NULL AS learnt, contains(c.line, 'then ') AS chained,
           if(learnt AND chained, replace(replace(replace(regexp_replace(regexp_replace(c.line,
               ',? \w+=[^ ,]+|, dense inputs|, text \d+', '', 'g'), '^[^,]+, ', ''),
                                                          'then reconstruct', 'blocks trained'), 'then distill', 'distilled'),
                                                              'then finetune', 'fine-tuned'), c.method) AS called
    FROM curves c
    JOIN metrics USING (metric)
    LEFT JOIN trained t USING (variant_id)
    WHERE NOT resized AND NOT bound AND c.scale = 'perplexity' AND c.method <> 'dense' AND NOT contains(c.line, 'then int')
), begun AS (
    -- The method of a parent, in the same panel.
    SELECT DISTINCT panel, method FROM named JOIN trained t ON t.parent = named.variant_id
), points AS (
    SELECT *, learnt OR method = 'magnitude' AND granularity = 'layer' OR (panel, method) IN (FROM begun) AS asked
    FROM named
    WHERE panel IN (SELECT panel FROM named WHERE learnt) AND (learnt OR NOT chained)
), best AS (
    FROM points WHERE asked
    QUALIFY row_number() OVER (PARTITION BY panel, called, sparsity ORDER BY score, line, variant_id) = 1
), told AS (
    -- The highest sparsity at which a trained model has at most ten times the dense perplexity, and less than any that is not trained.
    SELECT model, (SELECT count(DISTINCT panel) > 1 FROM best) AS several, sparsity,
           min(score / dense) FILTER (NOT learnt) AS before, min(score / dense) FILTER (learnt) AS after
    FROM best
    GROUP BY panel, model, sparsity
    HAVING after <= 10 AND after < before
    ORDER BY sparsity DESC, after
    LIMIT 1
)
SELECT sparsity, score, low, high, dense,
       CASE WHEN max(score) OVER (PARTITION BY panel) > collapsed_above / 2 THEN collapsed_above END AS collapsed, panel,
       if(learnt, 8, _method_place(method)) AS place, count(*) OVER (PARTITION BY panel, called) = 1 AS alone, called AS line,
       (SELECT format('{}At {}% zeros training brings the perplexity from {:.3g} to {:.2g} times dense''s',
           if(several, model || ': ', ''), percent_label(sparsity), before, after) FROM told) AS finding
FROM best
ORDER BY panel, learnt, line, sparsity;
