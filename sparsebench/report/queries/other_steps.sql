-- The steps other than pruning that made variants.
SELECT DISTINCT step, name
FROM steps
JOIN cells USING (variant_id)
WHERE step NOT IN ('prune', 'floor') AND status = 'done' /* manifests */
ORDER BY step, name
