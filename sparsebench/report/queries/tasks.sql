-- What was asked of each dense model, and how well it did.
-- Blind: a model without skill is not shown to be worse.
SELECT at_chance OR separable IS false AS blind, task, model, weights, dtype, metric, n, subset, num_fewshot, chance, score, low, high,
       CASE WHEN scale = 'perplexity' THEN score END AS perplexity, if(higher_is_better, 'higher', 'lower') AS better, if(higher_is_better, '↑', '↓') AS arrow
FROM scores
WHERE method = 'dense' AND weights <> 'random' /* manifests */
-- The same model scored once more, say by another version of what loads it, says nothing new.
QUALIFY row_number() OVER (PARTITION BY model, weights, dtype, task, metric, n, subset, num_fewshot, score ORDER BY manifest, record_id) = 1
ORDER BY model, dtype, task, n, num_fewshot, record_id
