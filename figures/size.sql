-- title: Size on disk by format, beside its bounds and the file that the model came from
-- finding: finding
-- about: megabytes in each storage format beside the information bound
-- kind: bars
-- x: sparsity
-- y: megabytes
-- base: rest
-- low: least
-- high: most
-- series: format
-- facet: facet
-- reference: raw_bound = bound: values incompressible; entropy_bound = bound: entropy of the values; own = the quantized file that it was made from
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: weight files, MB
-- note: Pale: tensors that are not pruned (embeddings, norms, biases). Bars are means over the methods at a sparsity, whiskers their range; only pruned models are shown. The bounds are for the pruned tensors; the entropy bound is drawn above the smallest pale part.

WITH drawn AS (
SELECT sparsity, format, avg(bytes) / 1e6 AS megabytes, avg(bytes - prunable_bytes) / 1e6 AS rest, min(bytes) / 1e6 AS least,
       max(bytes) / 1e6 AS most, min(unprunable_bytes + raw_value_bound) / 1e6 AS raw_bound,
       min(least_rest + entropy_bound) / 1e6 AS entropy_bound, min(own) / 1e6 AS own, model_label(model, weights) AS facet, bool_or(weights = 'random') AS rehearsal
FROM (SELECT DISTINCT ON (variant_id, format) *, min(bytes - prunable_bytes) OVER (PARTITION BY manifest, variant_id) AS least_rest,
             max(bytes) FILTER (format = 'source' AND weights = 'dequantized') OVER (PARTITION BY manifest, model) AS own FROM sizes
      -- A variant counts once, in however many manifests it is.
      ORDER BY variant_id, format, own IS NULL, manifest)
-- A mean over zeros, fewer bits, smaller shapes and skipped inputs would mean nothing.
WHERE pattern = 'unstructured' AND format <> 'source' AND variant_id NOT IN (FROM _more_than_zeros)
GROUP BY facet, sparsity, format
), packed AS (
    SELECT p.sparsity, p.megabytes / d.megabytes AS share
    FROM drawn p
    JOIN drawn d ON d.facet = p.facet AND d.sparsity = 0 AND d.format = 'dense' AND p.format = 'packed' AND NOT p.rehearsal
)
SELECT * EXCLUDE (rehearsal),
       (SELECT format('Packed, 50% zeros leave {}% of the dense file, 90% zeros {}%',
                      range_label('{:.0f}', 100 * min(share) FILTER (sparsity = 0.5), 100 * max(share) FILTER (sparsity = 0.5)),
                      range_label('{:.0f}', 100 * min(share) FILTER (sparsity = 0.9), 100 * max(share) FILTER (sparsity = 0.9))) FROM packed) AS finding
FROM drawn
ORDER BY rehearsal, facet, sparsity, format = 'archive', format;
