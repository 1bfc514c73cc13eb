-- title: Perplexity against sparsity, one-shot and trained
-- finding: finding
-- about: the perplexity that training during or after pruning brings back, and what it costs
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
-- note: Trained lines name the tokens that the last step read and its hours on its machine. The other lines are one-shot: the parents of trained variants, and magnitude. Whiskers: 95% intervals, by Student's t over windows. The point at 0% is the dense model.

WITH trained AS (
    SELECT variant_id, parent, trained_tokens, seconds / 3600 AS hours FROM variants WHERE trained_tokens IS NOT NULL
), points AS (
    SELECT c.*, trained_tokens, hours, c.variant_id IN (SELECT parent FROM trained) OR method = 'magnitude' AND granularity = 'layer' AS beside,
           max(trained_tokens) OVER (PARTITION BY panel, line) AS most, min(trained_tokens) OVER (PARTITION BY panel, line) AS least,
           min(hours) OVER (PARTITION BY panel, line) AS shortest, max(hours) OVER (PARTITION BY panel, line) AS longest
    FROM curves c
    LEFT JOIN trained USING (variant_id)
    WHERE NOT resized AND NOT bound AND scale = 'perplexity'
), shown AS (
    SELECT panel, line FROM points
    WHERE method <> 'dense' AND panel IN (SELECT panel FROM points WHERE trained_tokens IS NOT NULL)
    GROUP BY ALL
    HAVING bool_or(trained_tokens IS NOT NULL OR beside)
), told AS (
    -- The highest sparsity at which a trained model has at most ten times the dense perplexity, and less than any that is not trained.
    SELECT model, (SELECT count(DISTINCT panel) > 1 FROM shown) AS several, sparsity, min(score / dense) FILTER (trained_tokens IS NULL) AS before, min(score / dense) FILTER (trained_tokens IS NOT NULL) AS after
    FROM points
    WHERE (panel, line) IN (FROM shown) AND sparsity > 0
    GROUP BY panel, model, sparsity
    HAVING after <= 10 AND after < before
    ORDER BY sparsity DESC, after
    LIMIT 1
), named AS (
    -- Without the settings of a training, where it can be told from others by its tokens and hours.
    SELECT points.*, collapsed_above,
           coalesce(format(' ({}k{} tokens, {:.2g}{} h)', round(least / 1000)::BIGINT, if(most > least, format('–{}k', round(most / 1000)::BIGINT), ''), shortest,
                           if(longest > shortest, format('–{:.2g}', longest), '')), '') AS budget,
           if(most IS NULL, line, replace(replace(regexp_replace(line, ',? \w+=[^ ,]+', '', 'g'), 'then reconstruct', 'blocks trained'), 'then distill', 'distilled')) AS called
    FROM points
    JOIN metrics USING (metric)
    WHERE (panel, line) IN (FROM shown)
)
SELECT sparsity, score, low, high, dense, CASE WHEN max(score) OVER (PARTITION BY panel) > collapsed_above / 2 THEN collapsed_above END AS collapsed, panel,
       CASE WHEN most IS NOT NULL THEN 8 WHEN contains(line, 'then') THEN 7 ELSE _method_place(method) END AS place,
       count(*) FILTER (sparsity > 0) OVER (PARTITION BY panel, line) = 1 AS alone,
       if(min(line) OVER called = max(line) OVER called, called, line) || budget AS line,
       (SELECT format('{}At {}% zeros training brings the perplexity from {:.3g} to {:.2g} times dense''s', if(several, model || ': ', ''), percent_label(sparsity), before, after) FROM told) AS finding
FROM named
WINDOW called AS (PARTITION BY panel, called, budget)
ORDER BY panel, line, sparsity;
