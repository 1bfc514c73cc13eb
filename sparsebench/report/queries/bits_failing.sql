-- The models on which fewer bits fail the quality gate as they are, their perplexity over dense, and in how many of their forms, such as by
-- GPTQ, they pass.
SELECT b.recipe, e.model, min(e.ratio) FILTER (e.recipe = b.recipe) AS ratio, count(*) AS forms, count(*) FILTER (e.gate = 'passes') AS passing
FROM {bits} b
JOIN {explore} e ON e.kind = 'bits' AND starts_with(e.recipe, b.recipe) AND NOT list_contains(b.models, e.model)
GROUP BY b.recipe, e.model
HAVING bool_or(e.recipe = b.recipe)
ORDER BY b.recipe, e.model
