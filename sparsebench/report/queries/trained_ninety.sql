-- Of models with 90% zeros that were trained afterwards the one whose perplexity is nearest to dense's.
SELECT model, words AS recipe, after_perplexity / dense_perplexity AS ratio
FROM {recovered}
WHERE round(sparsity, 2) = 0.9 AND after_perplexity IS NOT NULL
ORDER BY ratio, model, recipe
LIMIT 1
