-- How many blocks a signal passes, one after the other.
SELECT model, weights, count(DISTINCT (side, layer)) AS blocks
FROM tensors
WHERE method = 'dense' AND layer IS NOT NULL AND weights <> 'random' /* manifests */
GROUP BY model, weights, variant_id
ORDER BY model, variant_id
