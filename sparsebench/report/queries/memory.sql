-- Peak memory of each variant alone, above the process's size before the model: summed over ranks, and rank by rank.
WITH per_rank AS (
    SELECT record_id, list(peak ORDER BY rank) AS rank_bytes, sum(tensors)::BIGINT AS tensor_bytes
    FROM (SELECT record_id, rank, max(peak_bytes) AS peak, max(tensor_bytes) AS tensors
          FROM memory WHERE rank IS NOT NULL AND phase <> 'load' GROUP BY record_id, rank)
    GROUP BY record_id
)
SELECT model, weights, machine, engine, kernel, device, ranks, threads, dtype, workload, method, sparsity, seed,
       method_label(method, granularity, pattern) || way AS label, peak_bytes, dense_peak_bytes,
       ratio, peak_bytes / min(if(engine = 'hf' AND method = 'dense', peak_bytes, NULL))
           OVER (PARTITION BY model, weights, machine, ranks, workload) AS of_plain, -- the smaller, where it ran in two formats
       rank_bytes, per_rank.tensor_bytes, measure, memory.variant_id NOT IN (FROM _more_than_zeros) AS zeros_alone
FROM memory
LEFT JOIN per_rank USING (record_id)
JOIN ways USING (variant_id)
WHERE phase = 'overall' AND rank IS NULL /* manifests */
QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
ORDER BY weights = 'random', model, machine, engine, ranks, threads, dtype, workload, method <> 'dense', method,
    pattern <> 'unstructured', granularity,
         pattern, inputs, sparsity, record_id
