-- The heaviest tails among the prunable matrices of each dense model.
WITH matrices AS (
    SELECT DISTINCT model, weights, variant_id, name, kurtosis, greatest(-min, max) / nullif(rms, 0) AS extreme
    FROM tensors
    WHERE method = 'dense' AND prunable AND weights <> 'random' /* manifests */
), heaviest AS (
    SELECT model, weights, variant_id, arg_max(name, (extreme, name)) AS name, max(extreme) AS extreme, max(kurtosis) AS kurtosis
    FROM matrices
    GROUP BY model, weights, variant_id
)
SELECT model, weights, name, extreme, kurtosis
FROM heaviest
-- Another version of a library makes another variant of the same weights, whose sums differ in their last digits.
QUALIFY row_number() OVER (PARTITION BY model, weights, name, round(extreme, 3) ORDER BY variant_id) = 1
ORDER BY model, weights, extreme
