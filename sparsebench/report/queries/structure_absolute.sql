-- What share of the dense models' prunable weights is above an absolute threshold.
SELECT DISTINCT model, weights, threshold, far_share AS far
FROM structure
WHERE method = 'dense' AND scale = 'absolute' AND scope = 'prunable' AND threshold IN (0.001, 0.01, 0.1) /* manifests */
ORDER BY threshold, model
