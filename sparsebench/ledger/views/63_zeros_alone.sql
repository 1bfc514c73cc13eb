-- Pruning alone: at each sparsity of a model the variant with the lowest perplexity over dense, on whatever windows and with whatever
-- calibration it was measured (n windows), and the packed file over the dense one, the mean of that sparsity.
CREATE OR REPLACE VIEW _zeros_alone AS
WITH files AS (
    SELECT model, weights, sparsity, avg(share ORDER BY share) AS share
    FROM (SELECT DISTINCT model, weights, variant_id, sparsity, share FROM sizes
          WHERE format = 'packed' AND pattern = 'unstructured' AND method <> 'dense' AND variant_id NOT IN (FROM _more_than_zeros))
    GROUP BY ALL
)
SELECT d.variant_id, d.model, d.weights, d.sparsity, r.words, d.ratio, d.ratio_low, d.ratio_high, d.pairs AS n, f.share
FROM vs_dense d
JOIN _recipes r USING (variant_id)
JOIN files f ON (f.model, f.weights, f.sparsity) = (d.model, d.weights, d.sparsity)
WHERE d.ratio IS NOT NULL AND d.pattern = 'unstructured' AND d.weights <> 'random' AND NOT r.chance
    AND d.variant_id NOT IN (FROM _more_than_zeros)
QUALIFY row_number() OVER (PARTITION BY d.model, d.weights, round(d.sparsity, 4) ORDER BY d.ratio, r.words, d.variant_id) = 1;
