-- The tasks of each dense model, and its scores. Elsewhere: what other machines gave on the same sample.
-- Blind: a model without skill is not shown to be worse. Most: the largest sample on which 90% zeros or more were scored, or the largest.
WITH asked AS (
    SELECT s.*, format(if(scale = 'perplexity', '{:.2f}', '{:.3f}'), score) AS shown,
           (SELECT count(*) FROM scores v
               WHERE v.method <> 'dense'
                   AND (v.manifest, v.model, v.weights, v.task, v.n, v.subset) = (s.manifest, s.model, s.weights, s.task, s.n,
                       s.subset)) AS variants,
           list_sort(list_distinct(list(shown) OVER (PARTITION BY model, weights, dtype, task, metric, n, subset, num_fewshot))) AS machines,
           EXISTS (FROM scores v WHERE v.sparsity >= 0.9 AND v.variant_id NOT IN (FROM _more_than_zeros)
               AND (v.model, v.weights, v.task, v.n, v.subset) = (s.model, s.weights, s.task, s.n, s.subset)) AS covered
    FROM scores s
    WHERE method = 'dense' AND weights <> 'random' /* manifests */
)
SELECT dense_at_chance AS blind, task, model, weights, dtype, metric, n, subset, num_fewshot, chance,
       if(floor = chance, floor, NULL) AS floor,
       (covered, n) = max((covered, n)) OVER (PARTITION BY model, weights, dtype, task, metric) AS most, score, low, high,
       CASE WHEN scale = 'perplexity' THEN score END AS perplexity,
       list_filter(machines, lambda other: other <> shown) AS elsewhere, if(higher_is_better, 'higher', 'lower') AS better,
       if(higher_is_better, '↑', '↓') AS arrow
FROM asked
-- Another machine, or another version of a library, scores the model once more: the score beside most variants stands for all. A task without
-- variants is shown only where no task has any.
QUALIFY row_number() OVER (PARTITION BY model, weights, dtype, task, metric, n, subset, num_fewshot
    ORDER BY variants DESC, manifest, record_id) = 1
    AND (variants > 0 OR max(variants) OVER () = 0)
ORDER BY model, dtype, task, n, num_fewshot, record_id
