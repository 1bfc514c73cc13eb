-- What pruning itself noted: damping that had to be raised, columns that a pattern does not reach, and the like.
WITH said AS (
    SELECT DISTINCT variant_id, unnest(string_split(note, '; ')) AS note
    FROM base.makings
    JOIN base.records USING (record_id)
    WHERE status = 'done' AND note <> ''
)
SELECT note, model, weights, string_agg(DISTINCT method, ', ' ORDER BY method) AS methods, count(DISTINCT variant_id) AS variants
FROM said
JOIN cells USING (variant_id)
WHERE stage = 'make' /* manifests */
GROUP BY note, model, weights
ORDER BY weights = 'random', model, note
