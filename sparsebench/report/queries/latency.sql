-- Wall time of each phase beside the dense model's in the same job; the dense rows are the model against itself (A/A).
SELECT record_id, variant_id, model, weights, machine, machine_label(machine) AS machine_name,
       split_part(machine_label(machine), ',', 1) AS processor, engine, kernel, device, ranks, threads, dtype, workload, method,
       sparsity, phase, dense_ms, ms,
       if(n > 1, low_ms, NULL) AS low_ms, if(n > 1, high_ms, NULL) AS high_ms, n, steady, speedup, speedup_low, speedup_high,
       kernel_speedup, zeros_speedup, zeros_speedup_low, zeros_speedup_high,
       -- Zeros save no more than the bytes that they leave out. Without a zero a bitmask costs time, which the quotient credits to them.
       zeros_bound, if(zeros_bound IS NULL, NULL, least(zeros_speedup, zeros_bound)) AS zeros_part,
       latency.variant_id NOT IN (FROM _more_than_zeros) AS zeros_alone,
       if(kernel LIKE '%runs%', 'format and zeros together', 'zeros') AS part, pairs, noise, baseline,
       perplexity_ratio, -- Speed-ups within a tenth are alike: the lower loss leads.
       round(8 * log2(speedup)) AS pace, coalesce(perplexity_ratio, 1e99) AS loss, coalesce(passes, false) AS passes,
       coalesce(gate.ruined, false) AS ruined, parity_l2, parity_tolerance,
       wraps_only, notes, if(method = 'dense', 'dense against itself', method_label(method, granularity, pattern) || way) AS label,
       -- Until then torch copied the transposed output head in each prompt of a timed decoder (docs/measuring.md).
       family = 'decoder' AND device = 'cpu' AND phase IN ('prefill', 'generate') AND started_at < TIMESTAMP '2026-11-29 09:32:00' AS copied,
       CASE WHEN method = 'dense' THEN 'noise floor' WHEN verdict = 'no difference detected' AND resolution > 0.2 THEN 'too noisy'
           WHEN verdict = 'no difference detected' THEN 'no gain' ELSE verdict END AS outcome,
       CASE verdict WHEN 'faster' THEN ' ↑' WHEN 'slower' THEN ' ↓' ELSE '' END AS mark,
       bool_or(outcome IN ('faster', 'slower')) OVER (PARTITION BY model, weights, machine, engine, device, ranks, threads, dtype,
           workload, label, phase) AS differs,
       CASE WHEN steady THEN '' ELSE ' ~' END AS unsteady
FROM latency
JOIN ways USING (variant_id)
LEFT JOIN (SELECT variant_id, max(ratio) AS perplexity_ratio FROM vs_dense GROUP BY variant_id) USING (variant_id)
LEFT JOIN (SELECT variant_id, passes, ruined FROM gate) gate USING (variant_id)
WHERE phase IS NOT NULL /* manifests */
QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1
ORDER BY weights = 'random', model, machine, engine, ranks, threads, dtype, workload, method <> 'dense', method,
    pattern <> 'unstructured', granularity,
         pattern, way, sparsity,
         list_position(['load', 'forward', 'encode', 'prefill', 'decode', 'generate'], phase), record_id
