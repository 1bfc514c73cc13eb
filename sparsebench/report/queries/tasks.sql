-- What was asked of each dense model, and how well it did.
SELECT task, model, weights, dtype, metric, n, subset, num_fewshot, chance, score, low, high,
       CASE WHEN scale = 'perplexity' THEN score END AS perplexity, if(higher_is_better, 'higher', 'lower') AS better, if(higher_is_better, '↑', '↓') AS arrow
FROM scores
WHERE method = 'dense' AND weights <> 'random' /* manifests */
QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
ORDER BY model, dtype, task, n, num_fewshot, record_id
