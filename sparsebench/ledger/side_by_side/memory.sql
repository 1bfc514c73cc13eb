WITH peaks AS (
    FROM memory
    WHERE variant_id IN ($a, $b) AND phase = 'overall'
    QUALIFY row_number() OVER (PARTITION BY variant_id, engine, ranks, workload, dtype, machine ORDER BY started_at DESC, record_id, manifest) = 1
)
SELECT engine, ranks, workload, dtype, machine, one.peak_bytes AS a, two.peak_bytes AS b, two.peak_bytes / one.peak_bytes AS ratio
FROM peaks one
JOIN peaks two USING (engine, ranks, workload, dtype, machine)
WHERE one.variant_id = $a AND two.variant_id = $b
ORDER BY engine, ranks, workload, dtype, machine;
