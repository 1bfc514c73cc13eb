-- Scores that stayed within a point: how many answers changed anyway.
SELECT model, weights, task, metric, n, subset, num_fewshot,
       method_label(method, granularity, pattern) || way AS label, nullif(sparsity, 0) AS sparsity, gained, lost,
       (gained + lost) / pairs AS changed, difference
FROM scores
JOIN ways USING (variant_id)
JOIN (SELECT manifest, record_id, gained, lost, pairs, difference, verdict FROM vs_dense) USING (manifest, record_id)
WHERE verdict = 'no difference detected' AND abs(difference) <= 0.01 AND gained + lost >= 0.005 * pairs AND weights <> 'random' /* manifests */
QUALIFY row_number() OVER (PARTITION BY model, weights, task, n, subset, num_fewshot ORDER BY changed DESC, label, sparsity, record_id) = 1
ORDER BY model, task, n DESC, weights, subset
