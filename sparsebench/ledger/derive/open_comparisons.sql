-- Each sparsified variant's score beside its dense model's: same weights at the origin, same task, same settings.
WITH scored AS (
    SELECT s.record_id, s.metric, s.task, s.chance, i.method <> $unexplained AS explained, _same(r.settings) AS settings, v.method, v.source, v.revision, v.family,
           v.dtype, v.weights
    FROM base.scores s
    JOIN base.intervals i USING (record_id)
    JOIN base.records r USING (record_id)
    JOIN base.variants v USING (variant_id)
)
SELECT s.record_id, d.record_id, s.metric, s.explained AND d.explained, s.chance
FROM scored s
JOIN scored d ON d.method = 'dense' AND s.method <> 'dense' AND s.task = d.task AND s.metric = d.metric
             AND s.settings = d.settings AND s.source = d.source AND s.revision = d.revision AND s.family = d.family
             AND s.dtype = d.dtype AND s.weights = d.weights
LEFT JOIN base.comparisons c ON c.record_id = s.record_id AND c.dense_record_id = d.record_id
WHERE c.record_id IS NULL
ORDER BY ALL;
