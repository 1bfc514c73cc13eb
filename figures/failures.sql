-- title: What could not be measured, and why
-- about: cells that failed, are unsupported or were skipped, with their reasons
-- kind: heatmap
-- x: sparsity
-- y: row_name
-- value: severity
-- text: text
-- remark: reason
-- facet: model
-- range: -0.15 1.4
-- xscale: sparsity
-- xlabel: sparsity, %
-- note: F failed, U unsupported (that version could not do it), S skipped (a cell that it needs failed), · done. Only rows with such a cell are shown. A reason ends with the day of the record; later versions may do more, as the sparse engine now runs int8.

WITH marked AS (
    SELECT c.*, coalesce(CASE status WHEN 'failed' THEN 1.0 WHEN 'skipped' THEN 0.6 WHEN 'unsupported' THEN 0.35
               WHEN 'done' THEN 0.0 END, 0) AS severity,
           CASE status WHEN 'failed' THEN 'F' WHEN 'skipped' THEN 'S' WHEN 'unsupported' THEN 'U' WHEN 'done' THEN '·' END AS text,
           if(c.method = 'dense', NULL, line) AS line
    FROM cells c
    JOIN ways USING (variant_id)
    WHERE status <> 'missing'
), named AS (
    SELECT model, weights, stage, label, sparsity, severity, text,
           regexp_replace(left(split_part(reason, chr(10), 1), 160), '\s+', ' ', 'g')
               || coalesce(strftime(started_at, ' (%Y-%m-%d)'), '') AS reason,
           concat(coalesce(line, 'dense'), ': ', regexp_replace(label, ' b\d+ p\d+ g\d+$', '')) AS row_name
    FROM marked
)
SELECT DISTINCT ON (model, weights, row_name, sparsity) sparsity, row_name, severity, text, if(text = '·', NULL, reason) AS reason,
       model_label(named.model, weights) AS model
FROM named
QUALIFY bool_or(severity > 0) OVER (PARTITION BY model, weights, row_name)
ORDER BY weights = 'random', named.model,
    list_position(['make', 'structure', 'storage', 'benchmarks', 'latency', 'memory'], stage), row_name, sparsity,
         severity DESC;
