-- N:M patterns and blocks beside unstructured pruning by the same method at the same sparsity.
WITH compared AS (
    SELECT s.model, s.weights, s.dtype, s.task, s.metric, s.n, s.num_fewshot, s.limited, s.method, s.granularity, s.pattern, s.sparsity,
           s.calibration, inputs, s.score, s.low, s.high, v.dense_score
    FROM scores s
    JOIN ways USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.weights <> 'random' /* manifests */
    QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
)
SELECT p.model, p.weights, p.task, p.metric, p.n, p.limited, p.num_fewshot, p.method || p.inputs AS method,
       concat_ws(' ', nullif(if(p.pattern LIKE '%:%', '', p.granularity), ''), p.pattern) AS pattern, p.sparsity, p.dense_score, p.score, p.low, p.high,
       u.granularity, u.score AS free_score, u.low AS free_low, u.high AS free_high
FROM compared p
JOIN compared u ON u.pattern = 'unstructured' AND p.pattern <> 'unstructured' AND u.model = p.model AND u.dtype = p.dtype
               AND u.task = p.task AND u.n = p.n AND u.num_fewshot IS NOT DISTINCT FROM p.num_fewshot AND u.method = p.method
               AND u.calibration = p.calibration AND u.inputs = p.inputs AND (u.granularity = p.granularity OR p.pattern LIKE '%:%')
               AND abs(u.sparsity - p.sparsity) < 1e-6
ORDER BY p.model, p.task, p.n, p.method, p.sparsity, p.pattern, u.granularity
