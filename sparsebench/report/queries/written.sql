-- What variants retain on tasks with given answers to choose from (HellaSwag), beside tasks whose answers they write (SQuAD).
WITH kept AS (
    SELECT s.manifest, s.model, s.weights, s.variant_id, method_label(s.method, s.granularity, s.pattern) || way AS label, s.sparsity,
           s.task, s.metric, s.n, v.retained, v.retained_low AS low, v.retained_high AS high
    FROM scores s
    JOIN ways USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.family = 'decoder' AND s.weights <> 'random' AND v.retained_low IS NOT NULL /* manifests */
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task, s.metric, s.n ORDER BY s.started_at DESC, s.record_id) = 1
)
SELECT c.model, c.weights, c.label, c.sparsity, c.task, c.n, c.retained, c.low, c.high,
       w.task AS written_task, w.metric AS written_metric, w.n AS written_n, w.retained AS written_retained, w.low AS written_low,
       w.high AS written_high,
       CASE WHEN w.high < c.low THEN 'written' WHEN c.high < w.low THEN 'chosen' END AS loses_more
FROM kept c
JOIN kept w ON w.manifest = c.manifest AND w.model = c.model AND w.variant_id = c.variant_id
           AND c.metric IN ('acc', 'acc_norm') AND w.metric IN ('exact_match', 'f1', 'rouge_l', 'chrf', 'word_error_rate', 'per')
ORDER BY c.model, c.task, w.metric, c.sparsity, c.label
