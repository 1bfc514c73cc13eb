-- Savings against losses: at each sparsity the unstructured variant with the fewest losses on its model's tasks, what it loses
-- there, and the bytes and the time of one more token at that sparsity. Tasks that are invalid for the model do not count. A score
-- that is not above chance counts as a loss, whatever the test says. Random masks are left out.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
    -- Zeros alone: fewer bits and smaller shapes are not sparsity.
    AND variant_id NOT IN (FROM _more_than_zeros)
), judged AS (
    SELECT s.model, s.weights, s.dtype, s.variant_id, s.sparsity, method_label(s.method, s.granularity, 'unstructured') || way AS label,
           s.task, s.metric, s.score / v.dense_score AS ratio, s.scale, s.collapsed, _goodness(v.difference, s.higher_is_better) AS gain, v.difference,
           s.at_chance, _lost(v.verdict) OR s.at_chance AS lost, v.loss_at_most, v.loses_less, v.dense_score
    FROM scores s
    JOIN asked USING (variant_id)
    JOIN ways USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.pattern = 'unstructured' AND s.method <> 'random' AND v.verdict <> 'invalid'
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), each AS (
    SELECT model, weights, variant_id, sparsity, label, count(*) AS tasks, count(*) FILTER (lost) AS losses,
           avg(rank) AS standing, string_agg(
               task || CASE WHEN collapsed THEN ' collapsed' WHEN scale = 'perplexity' THEN format(' ×{:.2f}', ratio) ELSE format(' {:+.3f}', difference) END
                    || if(at_chance, ' (at chance)', ''), ', ' ORDER BY task
           ) FILTER (lost) AS what, bool_and(loses_less) AS cleared,
           string_agg(task || if(scale = 'perplexity', format(' under ×{:.2f}', 1 + greatest(loss_at_most, 0) / dense_score), format(' under {:.3f}', greatest(loss_at_most, 0))), ', ' ORDER BY task) AS hidden
    FROM (SELECT *, percent_rank() OVER (PARTITION BY model, weights, task, sparsity ORDER BY gain) AS rank FROM judged)
    GROUP BY model, weights, variant_id, sparsity, label
), best AS (
    SELECT *
    FROM each
    QUALIFY row_number() OVER (PARTITION BY model, weights, sparsity ORDER BY tasks DESC, losses, standing DESC, label, variant_id) = 1
), files AS (
    SELECT model, sparsity, format, avg(share) AS share
    FROM (SELECT DISTINCT variant_id, model, sparsity, pattern, format, share FROM sizes)
    JOIN asked USING (variant_id)
    WHERE pattern = 'unstructured' AND format IN ('packed', 'archive')
    GROUP BY ALL
), times AS (
    SELECT model, sparsity, median(speedup) AS speedup
    FROM latency
    JOIN asked USING (variant_id)
    WHERE engine = 'sparse' AND pattern = 'unstructured' AND phase IN ('decode', 'forward') AND method <> 'dense' AND verdict NOT IN ('not steady', 'no noise floor')
    GROUP BY ALL
), peaks AS (
    SELECT model, sparsity, avg(ratio) AS ratio
    FROM memory
    JOIN asked USING (variant_id)
    WHERE engine = 'sparse' AND pattern = 'unstructured' AND phase = 'overall' AND rank IS NULL AND method <> 'dense'
    GROUP BY ALL
)
SELECT b.model, b.weights, b.sparsity, b.label, b.tasks, b.losses, coalesce(replace(b.what, ' -', ' −'), if(b.cleared, 'less than a point, shown', 'none detected') || coalesce(' (' || b.hidden || ')', '')) AS what,
       packed.share AS packed, archive.share AS archive, times.speedup, peaks.ratio AS peak
FROM best b
LEFT JOIN files packed ON packed.model = b.model AND packed.sparsity = b.sparsity AND packed.format = 'packed'
LEFT JOIN files archive ON archive.model = b.model AND archive.sparsity = b.sparsity AND archive.format = 'archive'
LEFT JOIN times ON times.model = b.model AND times.sparsity = b.sparsity
LEFT JOIN peaks ON peaks.model = b.model AND peaks.sparsity = b.sparsity
ORDER BY b.model, b.sparsity
