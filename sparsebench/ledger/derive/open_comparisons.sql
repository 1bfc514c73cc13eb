-- Each variant's score beside its dense model's: same original weights, same task, same settings. A pair is compared again where a
-- floor has changed its chance.
WITH scored AS (
    SELECT s.record_id, s.metric, s.task, s.chance, s.n, i.method <> $unexplained AS explained, _same(r.settings) AS settings, v.method, v.source, v.revision, v.family,
           v.dtype, v.weights
    FROM base.scores s
    JOIN base.intervals i USING (record_id)
    JOIN base.records r USING (record_id)
    JOIN base.variants v USING (variant_id)
), paired AS (
    SELECT s.record_id, d.record_id AS dense_record_id, s.metric, s.explained AND d.explained AS explained,
           _better(coalesce(s.chance, m.guessed), f.floor, coalesce(m.higher_is_better, true)) AS chance, least(s.n, d.n) AS n
    FROM scored s
    JOIN scored d ON d.method = 'dense' AND s.method <> 'dense' AND s.task = d.task AND s.metric = d.metric
                 AND s.settings = d.settings AND s.source = d.source AND s.revision = d.revision AND s.family = d.family
                 AND s.dtype = d.dtype AND s.weights = d.weights
    LEFT JOIN metrics m ON m.metric = s.metric
    LEFT JOIN _floors f ON (f.source, f.revision, f.family, f.dtype, f.task, f.metric, f.settings)
                         = (s.source, s.revision, s.family, s.dtype, s.task, s.metric, s.settings)
)
SELECT p.*
FROM paired p
LEFT JOIN base.comparisons c USING (record_id, dense_record_id)
WHERE c.record_id IS NULL OR c.chance IS DISTINCT FROM p.chance
ORDER BY ALL;
