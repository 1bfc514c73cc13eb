-- The dense model timed against itself (A/A), by engine: how its ratio to itself varies between processes and within one, and the upper
-- tolerance bound of each phase. That bound is the noise floor; with one process, the worst phase's is.
SELECT model, weights, machine, split_part(machine_label(machine), ',', 1) AS chip, engine, ranks, threads, dtype, workload,
       phase, speedup, speedup_low, speedup_high, coalesce(processes, 1) AS processes,
       pairs, between_sd, within_sd, exp(noise_bound(speedup, speedup_low, speedup_high, _runs(processes, pairs))) - 1 AS bound
FROM latency
WHERE method = 'dense' AND phase <> 'load' AND speedup IS NOT NULL /* manifests */
QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1
ORDER BY weights = 'random', engine, machine, model, ranks, threads, dtype, workload,
    list_position(['forward', 'encode', 'prefill', 'decode', 'generate'], phase), record_id
