-- What training after a cut was worth, by model and task.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
)
SELECT DISTINCT model, recipe, task, if(scale = 'perplexity', NULL, before) AS before, if(scale = 'perplexity', before, NULL) AS before_perplexity,
       if(scale = 'perplexity', NULL, after) AS after, if(scale = 'perplexity', after, NULL) AS after_perplexity,
       if(scale = 'perplexity', NULL, dense_score) AS dense_score, if(scale = 'perplexity', dense_score, NULL) AS dense_perplexity,
       regained, trained_tokens, hours, recovered_per_hour, 'real' AS weights
FROM recovered
JOIN asked USING (variant_id)
JOIN metrics USING (metric)
ORDER BY model, task, recipe
