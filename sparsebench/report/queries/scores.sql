-- Every score beside its dense model's, one row per variant and task.
SELECT s.model, s.family, s.weights, s.dtype, s.task, s.metric, s.n, s.limited, s.num_fewshot, s.method, s.sparsity,
       concat_ws(' ', s.method, nullif(if(s.pattern = 'unstructured', s.granularity, s.pattern), '')) AS label, s.score, s.low, s.high,
       s.chance, v.difference, v.low AS difference_low, v.high AS difference_high, v.pairs,
       v.gained, v.lost, v.p_holm, v.recovery, coalesce(v.verdict, CASE s.method WHEN 'dense' THEN 'baseline' END) AS verdict,
       CASE WHEN s.low <= s.chance THEN ' †' ELSE '' END AS mark,
       CASE v.verdict WHEN 'worse' THEN '↓' WHEN 'better' THEN '↑' WHEN 'no difference detected' THEN '≈' END AS sign
FROM scores s
LEFT JOIN vs_dense v USING (manifest, record_id)
WHERE s.weights <> 'random' /* manifests */
QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
ORDER BY s.model, s.dtype, s.task, s.n, s.num_fewshot, s.method <> 'dense', s.method, s.pattern <> 'unstructured', label, s.sparsity, s.seed, record_id
