-- The heaviest tails among the prunable matrices of each dense model.
SELECT model, weights, arg_max(name, (extreme, name)) AS name, max(extreme) AS extreme, max(kurtosis) AS kurtosis
FROM (SELECT DISTINCT model, weights, variant_id, name, kurtosis, greatest(-min, max) / nullif(rms, 0) AS extreme
      FROM tensors WHERE method = 'dense' AND prunable AND weights <> 'random' /* manifests */)
GROUP BY model, weights, variant_id
ORDER BY model, variant_id
