-- Bytes on disk by format, against the bounds that no format can beat without using structure between values.
SELECT model, weights, variant_id, method, granularity, pattern, sparsity, seed, format, bytes,
       round(bytes / share)::BIGINT AS dense_bytes, share, bytes / unpruned_bytes AS unpruned_share, prunable_share,
       raw_value_share, entropy_share, unprunable_bytes / dense_bytes AS unprunable_share, seconds,
       CASE WHEN round_trip THEN 'yes' WHEN NOT round_trip THEN '**no**' END AS exact,
       method_label(method, granularity, pattern) || way AS label
FROM sizes
JOIN ways USING (variant_id)
WHERE format NOT IN ('dense', 'source') /* manifests */
QUALIFY row_number() OVER (PARTITION BY model, weights, label, sparsity, seed, format, bytes ORDER BY manifest, variant_id) = 1
ORDER BY weights = 'random', model, format = 'archive', format, method <> 'dense', method, pattern <> 'unstructured', granularity,
         pattern, label, sparsity, seed, variant_id
