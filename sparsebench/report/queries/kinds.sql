-- What was done to models, by kind of recipe: how many variants, an example, and, where perplexity was measured, the cost of one:
-- of those within a quarter of the dense perplexity the one whose tokens read least, else the one that loses least.
WITH done AS (
    SELECT DISTINCT variant_id FROM cells WHERE status = 'done' /* manifests */
), costs AS (
    SELECT r.kind, s.model, r.words, s.score / v.dense_score AS perplexity, share AS file, share * read_bytes / bytes AS read
    FROM (FROM scores WHERE metric = 'perplexity') s
    JOIN done ON done.variant_id = s.variant_id
    JOIN vs_dense v USING (manifest, record_id)
    JOIN sizes z ON z.variant_id = s.variant_id AND z.manifest = s.manifest AND z.format = 'packed'
    JOIN _recipes r ON r.variant_id = s.variant_id
    WHERE NOT r.chance
    QUALIFY row_number() OVER (PARTITION BY r.kind ORDER BY perplexity > 1.25, if(perplexity > 1.25, perplexity, read), words, s.model) = 1
)
SELECT kind, CASE kind WHEN 'zeros' THEN 'Sparsification by pruning' WHEN 'skipped inputs' THEN 'Sparsification of inputs' WHEN 'smaller shapes' THEN 'Structured pruning' WHEN 'vocabulary' THEN 'A smaller vocabulary'
                  WHEN 'bits' THEN 'Quantization' WHEN 'recovery' THEN 'Training alone' WHEN 'experts' THEN 'MoEfication' WHEN 'zeros + recovery' THEN 'Pruning, then distillation or other training' END AS idea,
       count(*) AS variants, min(recipe) AS example, any_value(c.model) AS model, any_value(c.words) AS words, any_value(perplexity) AS perplexity,
       any_value(file) AS file, any_value(read) AS read,
       (SELECT count(*) FROM steps JOIN done USING (variant_id) WHERE step = 'recover' AND name = 'distill') AS distilled
FROM _recipes
JOIN done USING (variant_id)
JOIN variants USING (variant_id)
LEFT JOIN costs c USING (kind)
WHERE kind <> 'floor'
GROUP BY kind
ORDER BY list_position(['zeros', 'skipped inputs', 'smaller shapes', 'vocabulary', 'bits', 'recovery', 'experts'], kind) NULLS LAST, variants DESC, kind
