-- N:M patterns and blocks beside unstructured pruning by the same method at the same sparsity, without other steps; of several variants of a name the better.
WITH compared AS (
    SELECT s.model, s.weights, s.dtype, s.task, s.metric, s.higher_is_better, s.scale, s.n, s.num_fewshot, s.subset, s.method,
           s.granularity, s.pattern, s.sparsity,
           s.calibration, inputs, s.record_id, s.score, if(s.collapsed, NULL, s.low) AS low,
           if(s.collapsed, NULL, s.high) AS high, v.dense_score
    FROM scores s
    JOIN ways USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.weights <> 'random' /* manifests */
          AND s.variant_id NOT IN (FROM _more_than_zeros)
    QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
)
SELECT p.model, p.weights, p.task, p.metric, p.n, p.subset, p.num_fewshot,
       method_label(p.method, p.granularity, p.pattern) || p.inputs AS label, p.sparsity,
       p.dense_score, p.score, p.low, p.high, u.granularity, u.score AS free_score, u.low AS free_low, u.high AS free_high,
       CASE WHEN p.scale = 'perplexity' THEN p.score END AS perplexity, CASE WHEN p.scale = 'perplexity' THEN u.score END AS free_perplexity,
       CASE WHEN p.scale = 'perplexity' THEN p.dense_score END AS dense_perplexity
FROM compared p
JOIN compared u ON u.pattern = 'unstructured' AND p.pattern <> 'unstructured'
    AND (u.model, u.weights, u.dtype, u.task, u.n, u.subset, u.method) = (p.model, p.weights, p.dtype, p.task, p.n, p.subset,
        p.method)
               AND u.num_fewshot IS NOT DISTINCT FROM p.num_fewshot
               AND u.calibration = p.calibration AND u.inputs = p.inputs AND (u.granularity = p.granularity OR p.pattern LIKE '%:%')
               AND abs(u.sparsity - p.sparsity) < 1e-6
QUALIFY row_number() OVER (PARTITION BY p.model, p.weights, p.dtype, p.task, p.metric, p.n, p.subset, p.num_fewshot, label,
    p.calibration, p.sparsity
                           ORDER BY _goodness(u.score, u.higher_is_better) DESC, u.granularity,
                               _goodness(p.score, p.higher_is_better) DESC, p.record_id, u.record_id) = 1
ORDER BY p.model, p.task, p.n, p.sparsity, label, p.weights, p.dtype, p.subset
