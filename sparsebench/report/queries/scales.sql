-- By what factor the kinds of module of each dense model differ in scale, block by block: the largest root mean square over the smallest.
WITH prunable AS (
    SELECT DISTINCT ON (model, weights, name) model, weights, side, kind, layer, rms, count
    FROM tensors
    WHERE method = 'dense' AND prunable AND weights <> 'random' /* manifests */
    ORDER BY model, weights, name, variant_id, manifest
), modules AS (
    SELECT model, weights, sqrt(sum(rms ** 2 * count ORDER BY rms, count) / sum(count)) AS rms
    FROM prunable
    GROUP BY model, weights, side, kind, layer
)
SELECT model, weights, max(rms) / min(rms) AS ratio FROM modules WHERE rms > 0 GROUP BY model, weights ORDER BY ratio
