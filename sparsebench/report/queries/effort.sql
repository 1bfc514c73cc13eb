-- The time that the last step of each variant took; the variants of one sweep share its time.
WITH made AS (
    SELECT variant_id, arg_max(s.seconds / s.sweep_size, started_at) AS seconds
    FROM base.makings s
    JOIN base.records USING (record_id)
    WHERE status = 'done'
    GROUP BY variant_id
), finished AS (
    SELECT variant_id, arg_max(step, position) AS last_step, arg_max(name, position) AS last_name FROM steps GROUP BY variant_id
), asked AS (
    SELECT DISTINCT variant_id
    FROM cells
    WHERE stage = 'make' AND status = 'done'
        AND variant_id NOT IN (SELECT variant_id FROM steps WHERE step = 'floor') /* manifests */
)
SELECT model, weights, last_step AS step, last_name AS method, count(*) AS variants, sum(seconds ORDER BY seconds) AS seconds,
       avg(seconds ORDER BY seconds) AS each
FROM asked
JOIN made USING (variant_id)
JOIN finished USING (variant_id)
JOIN base.variants USING (variant_id)
GROUP BY model, weights, last_step, last_name
ORDER BY weights = 'random', model, last_step, last_name
