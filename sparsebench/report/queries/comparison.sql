-- Methods side by side: perplexity at equal sparsity and pattern, and its ratio to the lowest over the windows of both (the
-- ratio of sums; from ten windows on with a 95% interval, Student's t over the windows).
WITH scored AS (
    SELECT s.record_id, s.model, s.weights, s.dtype, s.task, s.metric, s.n, s.subset, s.num_fewshot, s.pattern, s.sparsity, s.seed,
           method_label(s.method, if(s.pattern LIKE '%:%', '', s.granularity), 'unstructured') || way AS label,
           method_label(s.method, if(s.pattern LIKE '%:%', '', s.granularity), 'unstructured') || calibrated AS name,
           s.score, s.collapsed, if(s.collapsed, NULL, s.low) AS low, if(s.collapsed, NULL, s.high) AS high, v.dense_score,
           v.verdict, v.detectable
    FROM scores s
    JOIN ways USING (variant_id)
    JOIN (SELECT manifest, record_id, dense_score, verdict, detectable FROM vs_dense) v USING (manifest, record_id)
    WHERE s.weights <> 'random' AND s.metric = 'perplexity' AND s.variant_id NOT IN (FROM _more_than_zeros) /* manifests */
    QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
), ranked AS (
    SELECT *, count(DISTINCT label) OVER contest AS rivals, first_value(record_id) OVER (contest ORDER BY score, label, record_id) AS best_id,
           row_number() OVER (contest ORDER BY score, label, record_id) AS place
    FROM scored
    WINDOW contest AS (PARTITION BY model, weights, dtype, task, n, subset, num_fewshot, pattern, round(sparsity, 6))
), sums AS (
    SELECT r.record_id, count(*) AS windows, sum(o.value - b.value) AS d, sum(o.label) AS l, sum((o.value - b.value) ** 2) AS dd,
           sum((o.value - b.value) * o.label) AS dl, sum(o.label ** 2) AS ll
    FROM ranked r
    JOIN base.outcomes o USING (record_id)
    JOIN base.outcomes b ON b.record_id = r.best_id AND b.doc_id = o.doc_id AND b.doc_hash = o.doc_hash
    WHERE r.place > 1 AND NOT r.collapsed
    GROUP BY r.record_id
), spread AS (
    SELECT record_id, d / l AS shift,
           CASE WHEN windows >= 10 THEN _ratio_half(dd - 2 * (d / l) * dl + (d / l) ** 2 * ll, windows, l) END AS half
    FROM sums
)
SELECT model, weights, dtype, task, metric, n, subset, num_fewshot, pattern, sparsity, seed, label, name, score, low, high,
       collapsed, dense_score,
       if(collapsed, NULL, score / dense_score) AS ratio, verdict, if(collapsed, NULL, detectable) AS detectable,
       if(collapsed, NULL, detectable / dense_score) AS detectable_share, place = 1 AS best,
       coalesce(shift - half <= 0, false) AS tied,
       exp(shift) AS times, exp(shift - half) AS times_low, exp(shift + half) AS times_high,
       n >= 10 AS ranked, CASE WHEN collapsed OR n < 10 THEN '' WHEN place = 1 THEN '**' ELSE '' END AS bold,
       CASE WHEN tied AND NOT collapsed THEN ' ≈' ELSE '' END AS mark,
       avg(place) OVER (PARTITION BY model, weights, dtype, task, n, subset, num_fewshot, pattern = 'unstructured', label) AS standing
FROM ranked
LEFT JOIN spread USING (record_id)
WHERE rivals > 1
ORDER BY model, weights, dtype, task, n, subset, num_fewshot, pattern <> 'unstructured',
    if(pattern = 'unstructured', standing, 0), pattern, sparsity, place
