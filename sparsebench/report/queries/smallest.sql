-- The smallest files that pass the quality gate, by their format: GGUF files below half of dense, of int4 each model's smallest form, and int8.
WITH formats AS (
    SELECT model, recipe, share,
           CASE WHEN engine = 'llamacpp' THEN 'gguf' WHEN starts_with(recipe, 'int4') THEN 'int4'
               WHEN recipe = 'int8' THEN 'int8' END AS format
    FROM {decision}
    WHERE kind = 'bits' AND share IS NOT NULL
), smallest AS (
    FROM formats
    WHERE format IS NOT NULL
    QUALIFY format <> 'int4' OR row_number() OVER (PARTITION BY model, format ORDER BY round(share, 3), recipe) = 1
)
SELECT recipe, list(share ORDER BY share) AS shares, list(DISTINCT model ORDER BY model) AS models
FROM smallest
GROUP BY format, recipe
HAVING format <> 'gguf' OR min(share) < 0.5
ORDER BY list_position(['gguf', 'int4', 'int8'], format), min(share), recipe
