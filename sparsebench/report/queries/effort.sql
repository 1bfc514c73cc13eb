-- The time that the last making of each variant took; the variants of one sweep share its time.
WITH made AS (
    SELECT variant_id, arg_max(s.seconds / s.sweep_size, started_at) AS seconds
    FROM base.makings s
    JOIN base.records USING (record_id)
    WHERE status = 'done'
    GROUP BY variant_id
), asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE stage = 'make' AND status = 'done' AND variant_id NOT IN (SELECT variant_id FROM steps WHERE step = 'floor') /* manifests */
)
SELECT model, weights, method, count(*) AS variants, sum(seconds) AS seconds, avg(seconds) AS each
FROM asked
JOIN made USING (variant_id)
JOIN base.variants USING (variant_id)
GROUP BY model, weights, method
ORDER BY weights = 'random', model, method
