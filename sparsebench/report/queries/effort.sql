-- What it took to make the variants: wall time of the sparsify jobs.
SELECT model, weights, method, count(DISTINCT variant_id) AS variants, max(seconds) AS seconds
FROM cells
WHERE stage = 'sparsify' AND status = 'done' /* manifests */
GROUP BY model, weights, method
ORDER BY weights = 'random', model, method
