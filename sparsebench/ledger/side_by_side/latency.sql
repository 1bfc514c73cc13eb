-- Both variants under the same engine, ranks, workload and machine, the newest of each. Times are compared through the dense model
-- that ran in the same job as each of them: the interval of a ratio of two ratios is wider than that of one.
WITH timed AS (
    SELECT *, method = 'dense' AS itself, if(itself, 1, 1 / speedup) AS ratio, if(itself, 1, 1 / speedup_high) AS ratio_low,
           if(itself, 1, 1 / speedup_low) AS ratio_high
    FROM latency
    WHERE variant_id IN ($a, $b) AND phase <> 'load'
    QUALIFY row_number() OVER (PARTITION BY variant_id, engine, ranks, workload, dtype, phase, machine ORDER BY started_at DESC, record_id, noise DESC NULLS LAST, manifest) = 1
), paired AS (
    -- Beside a dense model's variant stands the time of the dense model in the same job.
    SELECT engine, ranks, workload, dtype, phase, machine, if(a.itself AND a.model = b.model, coalesce(b.dense_ms, a.ms), a.ms) AS a_ms,
           if(b.itself AND a.model = b.model, coalesce(a.dense_ms, b.ms), b.ms) AS b_ms,
           -- Each of two comparisons with dense brings its own noise.
           CASE WHEN a.itself THEN b.noise WHEN b.itself THEN a.noise ELSE exp(sqrt(ln(1 + a.noise) ** 2 + ln(1 + b.noise) ** 2)) - 1 END AS noise, a.steady AND b.steady AS steady,
           CASE WHEN a.model = b.model THEN ln(a.ratio / b.ratio) END AS shift,
           sqrt(ln(a.ratio / a.ratio_low) ** 2 + ln(b.ratio_high / b.ratio) ** 2) AS down,
           sqrt(ln(a.ratio_high / a.ratio) ** 2 + ln(b.ratio / b.ratio_low) ** 2) AS up
    FROM timed a
    JOIN timed b USING (engine, ranks, workload, dtype, phase, machine)
    WHERE a.variant_id = $a AND b.variant_id = $b
)
SELECT engine, ranks, workload, dtype, phase, machine, a_ms, b_ms, coalesce(exp(shift), a_ms / b_ms) AS speedup,
       exp(shift - down) AS speedup_low, exp(shift + up) AS speedup_high, noise,
       CASE WHEN shift IS NOT NULL AND $a <> $b THEN _timed_verdict(shift, shift - down, shift + up, ln(1 + noise), steady) END AS verdict
FROM paired
ORDER BY engine, ranks, workload, dtype, machine, phase;
