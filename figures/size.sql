-- title: Size on disk by format, beside what bounds it and what it came from
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
-- note: Pale: tensors that are not pruned (embeddings, norms, biases). Bars are means over the methods at a sparsity, whiskers their range; quantized models and smaller shapes are left out. Bounds are of the pruned tensors; the entropy's stands on the smallest pale part.

SELECT sparsity, format, avg(bytes) / 1e6 AS megabytes, avg(bytes - prunable_bytes) / 1e6 AS rest, min(bytes) / 1e6 AS least,
       max(bytes) / 1e6 AS most, min(unprunable_bytes + raw_value_bound) / 1e6 AS raw_bound,
       min(least_rest + entropy_bound) / 1e6 AS entropy_bound, min(own) / 1e6 AS own, model_label(model, weights) AS facet
FROM (SELECT *, min(bytes - prunable_bytes) OVER (PARTITION BY manifest, variant_id) AS least_rest,
             max(bytes) FILTER (format = 'source' AND weights = 'dequantized') OVER (PARTITION BY manifest, model) AS own FROM sizes)
-- A mean over zeros, fewer bits and smaller shapes would be of nothing.
JOIN (SELECT variant_id FROM variants WHERE bits IS NULL AND coalesce(parameters_removed, 0) <= 0) USING (variant_id)
WHERE pattern = 'unstructured' AND format <> 'source'
GROUP BY facet, sparsity, format
ORDER BY bool_or(weights = 'random'), facet, sparsity, format = 'archive', format;
