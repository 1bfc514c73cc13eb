-- Every score beside its dense model's, one row per variant and task.
SELECT s.model, s.family, s.weights, s.dtype, s.task, s.metric, s.higher_is_better, s.n, s.subset, s.num_fewshot, s.method, s.sparsity,
       method_label(s.method, s.granularity, s.pattern) || way AS label,
       s.collapsed, s.score, if(s.collapsed, NULL, s.low) AS low, if(s.collapsed, NULL, s.high) AS high,
       s.chance, if(s.collapsed, NULL, v.difference) AS difference, v.low AS difference_low, v.high AS difference_high,
       if(s.collapsed, NULL, s.score / v.dense_score) AS ratio, v.pairs, v.gained, v.lost, v.p_holm, v.retained,
       v.retained_low, v.retained_high, if(s.collapsed, NULL, v.detectable) AS detectable,
       if(s.collapsed OR s.scale <> 'perplexity', NULL, v.detectable / v.dense_score) AS detectable_share,
       v.documents_to_clear,
       coalesce(v.verdict, CASE s.method WHEN 'dense' THEN 'baseline' END)
           || CASE WHEN v.p < 0.05 AND v.p_holm >= 0.05 THEN format(' (p {:.2g}; {:.2g} as one of {} tests)', v.p, v.p_holm,
               v.tests) ELSE '' END AS verdict,
       (s.protocol ->> '$.window')::INTEGER AS context, (s.protocol ->> '$.stride')::INTEGER AS stride, s.protocol ->> '$.bos' AS bos,
       (s.protocol ->> '$.scored_tokens')::BIGINT AS scored, if(s.collapsed, NULL, s.bits_per_byte) AS bits_per_byte,
       if(s.at_chance, ' †', '') AS mark,
       CASE WHEN s.collapsed THEN '' WHEN v.verdict = 'worse' THEN '↓' WHEN v.verdict = 'better' THEN '↑'
            WHEN v.verdict = 'no difference detected' THEN '≈' END AS sign
FROM scores s
JOIN ways USING (variant_id)
LEFT JOIN vs_dense v USING (manifest, record_id)
WHERE s.weights <> 'random' /* manifests */
WINDOW alike AS (PARTITION BY s.model, s.weights, s.dtype, s.task, s.metric, s.subset, s.n, s.num_fewshot, label, s.sparsity,
    s.seed, s.score, v.difference, v.p_holm
                 ORDER BY manifest, record_id)
QUALIFY row_number() OVER alike = 1
ORDER BY s.model, s.dtype, s.task, s.n, s.num_fewshot, s.method <> 'dense', s.method, s.pattern <> 'unstructured', label,
    s.sparsity, s.seed, record_id, manifest
