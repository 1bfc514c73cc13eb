CREATE OR REPLACE VIEW _latency_phases AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       l.engine, l.ranks, _workload(c.settings) AS workload, coalesce(c.settings ->> '$.dtype', '') AS asked,
       coalesce(c.settings ->> '$.forced', '') = 'true' AS forced, p.phase, p.median_s, p.low_s, p.high_s, p.mad_s, p.n,
       p.steady AND coalesce(d.steady, true) AS steady,
       p.cpu_s, p.p90_s, p.energy_j, d.median_s AS dense_s, d.energy_j AS dense_energy_j, r.ratio, r.low AS ratio_low,
       r.high AS ratio_high, r.pairs, r.processes, r.within_sd, r.between_sd, l.placement, l.stolen, l.baseline, l.kernel,
       l.read_bytes_per_second / 1e9 AS read_gb_per_second, l.device, l.dtype, l.threads, l.parity_l2, l.parity_tolerance,
       l.wraps_only, l.load_before, l.load_after, l.governor, l.mhz_before, l.mhz_after, l.energy_source, l.notes,
       c.machine, c.started_at, c.record_id
FROM _cells c
JOIN base.latency l USING (record_id)
JOIN base.latency_phases p ON p.record_id = c.record_id AND p.side = 'variant'
LEFT JOIN base.latency_phases d ON d.record_id = c.record_id AND d.side = 'dense' AND d.phase = p.phase
LEFT JOIN base.latency_differences r ON r.record_id = c.record_id AND r.phase = p.phase;

-- How far from 1, in logarithms, comparisons of a model with itself are: an upper tolerance bound for 95% of them, with 95% confidence.
-- One such comparison (an A/A run) over n processes gives the mean m and its standard error e. The mean of another over n processes is
-- normal about the same value. The bound is |m| + k e, where k is the quantile 0.95 of the noncentral t with n - 1 degrees of freedom
-- and noncentrality z(0.95): the one-sided bound of NIST's handbook, 7.2.6.3, for a single value whose error n others show. The ratio's interval
-- reaches t(0.975) e to each side, so that the list holds k / t for n from 2 to 30, by scipy. k / t falls with n: its last value serves above 30.
CREATE OR REPLACE MACRO noise_bound(ratio, low, high, n) AS
    abs(ln(ratio)) + ln(high / low) / 2 * list_extract(
          [2.0892, 1.9472, 1.8717, 1.8285, 1.8008, 1.7817, 1.7677, 1.7571, 1.7487, 1.7419,
           1.7364, 1.7317, 1.7277, 1.7243, 1.7213, 1.7187, 1.7164, 1.7143, 1.7125, 1.7108,
           1.7093, 1.7079, 1.7066, 1.7055, 1.7044, 1.7034, 1.7025, 1.7017, 1.7009], least(greatest(n, 2), 30) - 1);

-- The runs that show how comparisons vary: processes, or the pairs of blocks of one process, which say nothing about another process.
CREATE OR REPLACE MACRO _runs(processes, pairs) AS if(coalesce(processes, 1) > 1, processes, pairs);

-- The dense model in the dense kernels of an engine that skips zeros. In `latency` that engine's dense model is plain torch's.
CREATE OR REPLACE VIEW _own_dense AS
SELECT manifest, variant_id, model, weights, method, sparsity, engine, ranks, workload, phase, 1000 * median_s AS ms, 1 / ratio AS speedup,
       read_gb_per_second, kernel, dtype, threads, steady, machine, started_at, record_id
FROM _latency_phases
WHERE forced AND phase <> 'load';

CREATE OR REPLACE VIEW latency AS
WITH unforced AS (
    SELECT * EXCLUDE (forced) FROM _latency_phases WHERE NOT forced
), kernels AS (
    -- The time of an engine that skips zeros where no weight is zero: the kernel's own part of a speed-up.
    SELECT manifest, model, engine, ranks, workload, asked, machine, phase, arg_max(ln(ratio), started_at) AS own,
           arg_max(ln(ratio_high / ratio_low), started_at) / 2 AS half
    FROM _latency_phases
    WHERE forced
    GROUP BY ALL
), itself AS (
    -- The dense model against itself.
    SELECT manifest, model, engine, ranks, workload, asked, machine, phase, _runs(processes, pairs) AS runs,
           noise_bound(ratio, ratio_low, ratio_high, runs) AS bound, coalesce(processes, 1) > 1 AS several
    FROM unforced
    WHERE method = 'dense' AND phase <> 'load'
    QUALIFY row_number() OVER (PARTITION BY manifest, model, engine, ranks, workload, asked, machine, phase ORDER BY bound DESC) = 1
), noise AS (
    -- Two copies of a model have different positions in memory, for better or worse. Several processes show how much that changes a phase.
    -- In one process, the positions may be good or bad for one phase only: the worst phase counts for all.
    SELECT * EXCLUDE (runs, bound), if(several, bound, max(bound) OVER setting) AS noise,
           if(several, runs, arg_max(runs, bound) OVER setting) AS noise_runs
    FROM itself
    WINDOW setting AS (PARTITION BY manifest, model, engine, ranks, workload, asked, machine)
), stored AS (
    SELECT variant_id, if(v.weights = 'random', v.model, '') AS named, v.source, v.revision, v.family, v.dtype, v.weights, v.recipe,
           max(z.prunable_bytes) FILTER (z.format = 'dense') AS dense, min(z.prunable_bytes) FILTER (z.format = 'packed') AS packed,
           max(z.prunable_bytes / t.prunable) FILTER (z.format = 'dense') AS width
    FROM base.sizes z
    JOIN base.storage t USING (record_id)
    JOIN _counted USING (record_id)
    JOIN base.variants v USING (variant_id)
    GROUP BY ALL
), heads AS (
    -- The weights of the output head, or of the embedding that serves as one.
    SELECT if(v.weights = 'random', v.model, '') AS named, v.source, v.revision, v.family, v.dtype, v.weights,
           coalesce(max(t.count) FILTER (t.kind = 'head'), max(t.count) FILTER (t.kind = 'embedding')) AS head
    FROM base.structure_tensors t
    JOIN _counted USING (record_id)
    JOIN base.variants v USING (variant_id)
    WHERE v.recipe = 'dense' AND NOT t.prunable
    GROUP BY ALL
), saved AS (
    -- The bytes that the dense model reads for a token over those that the variant reads, and the bytes of one weight.
    SELECT variant_id, max(dense) FILTER (recipe = 'dense') OVER one_model AS whole,
           max(width) FILTER (recipe = 'dense') OVER one_model AS width,
           coalesce(head, 0) * width AS kept, (whole + kept) / (packed + kept) AS most
    FROM stored
    LEFT JOIN heads USING (named, source, revision, family, dtype, weights)
    WINDOW one_model AS (PARTITION BY named, source, revision, family, dtype, weights)
)
SELECT manifest, variant_id, model, family, weights, method, granularity, pattern, sparsity, seed, engine, ranks, workload,
       phase, 1000 * median_s AS ms, 1000 * low_s AS low_ms, 1000 * high_s AS high_ms, 1000 * mad_s AS mad_ms, n, steady,
       1000 * p90_s AS p90_ms, 1000 * cpu_s AS cpu_ms, energy_j, dense_energy_j, 1000 * dense_s AS dense_ms,
       1 / ratio AS speedup, 1 / ratio_high AS speedup_low, 1 / ratio_low AS speedup_high, pairs, processes, within_sd,
       between_sd, exp(noise) - 1 AS noise, noise_runs,
       exp(-own) AS kernel_speedup, exp(zeros) AS zeros_speedup,
       exp(zeros - sqrt(half ** 2 + (ln(ratio_high / ratio_low) / 2) ** 2)) AS zeros_speedup_low,
       exp(zeros + sqrt(half ** 2 + (ln(ratio_high / ratio_low) / 2) ** 2)) AS zeros_speedup_high,
       -- Of one sequence, a token takes every weight once. Files hold other bytes than a run in another number format.
       CASE WHEN zeros IS NOT NULL AND phase = 'decode' AND starts_with(workload, 'b1 ')
           AND round(width) = if(l.dtype = 'float32', 4, 2) THEN most END AS zeros_bound,
       CASE WHEN noise IS NOT NULL AND ratio IS NOT NULL THEN exp(greatest(noise, ln(ratio_high / ratio_low) / 2)) - 1 END AS resolution,
       CASE WHEN ratio IS NOT NULL
           AND method <> 'dense' THEN _timed_verdict(-ln(ratio), -ln(ratio_high), -ln(ratio_low), noise, steady) END AS verdict,
       baseline, kernel, device, dtype, threads, parity_l2, parity_tolerance, wraps_only, load_before, load_after,
       governor, mhz_before, mhz_after, energy_source, placement, stolen, read_gb_per_second, notes, machine, started_at, record_id
FROM (SELECT * REPLACE (noise * if(several AND processes > 1, sqrt(greatest(1, noise_runs / processes)), 1) AS noise), -- a mean over fewer processes varies more
             if(method <> 'dense' AND NOT _dense_kernel(kernel), own - ln(ratio), NULL) AS zeros
      FROM unforced
      LEFT JOIN kernels USING (manifest, model, engine, ranks, workload, asked, machine, phase)
      LEFT JOIN noise USING (manifest, model, engine, ranks, workload, asked, machine, phase)) l
LEFT JOIN saved USING (variant_id);

COMMENT ON VIEW latency IS 'wall time of each phase beside the dense model''s, one row per variant, engine, ranks, workload and phase';
COMMENT ON COLUMN latency.engine IS 'deepspeed, deepspeed-zero3 (parameters gathered layer by layer), hf (plain transformers), sparse (kernels that skip zeros), skip (reads only the weights that a token needs), llamacpp, or a plugin''s';
COMMENT ON COLUMN latency.ranks IS 'processes that share the model by tensor parallelism';
COMMENT ON COLUMN latency.workload IS 'one request: b sequences of p prompt tokens, then g new tokens each';
COMMENT ON COLUMN latency.phase IS 'load (once per process), forward (encoder), encode, prefill (to the first new token), decode (one new token), generate (a whole request)';
COMMENT ON COLUMN latency.ms IS 'wall time of one step, of the slowest rank, ms: the geometric mean over processes of their medians';
COMMENT ON COLUMN latency.low_ms IS 'lower end of the 95% interval of ms: Student''s t over processes, or over blocks where there was one process (older records: a bootstrap of its steps)';
COMMENT ON COLUMN latency.high_ms IS 'upper end of that interval';
COMMENT ON COLUMN latency.mad_ms IS 'median absolute deviation, ms';
COMMENT ON COLUMN latency.n IS 'timed steps';
COMMENT ON COLUMN latency.steady IS 'false where dense or variant was more than 2% faster or slower in the second half of its steps, or did not warm up in most processes (with one process: where warm-up ended at its cap and the halves differ by more than 5%): distrust the number; always false for load';
COMMENT ON COLUMN latency.p90_ms IS '90th percentile, ms; NULL below 64 samples';
COMMENT ON COLUMN latency.cpu_ms IS 'median CPU time of one step over all threads and ranks, ms';
COMMENT ON COLUMN latency.energy_j IS 'energy of one step, J, the mean over processes, of everything that energy_source counts; NULL without a counter';
COMMENT ON COLUMN latency.dense_energy_j IS 'energy of one step of the dense model in the same job, J; NULL without a counter';
COMMENT ON COLUMN latency.dense_ms IS 'median wall time of the dense model in the same job, ms';
COMMENT ON COLUMN latency.speedup IS 'time of the dense model / the variant''s: above 1 the variant is faster; NULL for load';
COMMENT ON COLUMN latency.speedup_low IS 'lower end of the 95% interval of speedup, over processes; with one process, over its pairs of blocks only';
COMMENT ON COLUMN latency.speedup_high IS 'upper end of the 95% interval of speedup';
COMMENT ON COLUMN latency.pairs IS 'pairs of blocks behind speedup; 0 where dense and variant did not run together';
COMMENT ON COLUMN latency.processes IS 'processes that each loaded and timed the pair anew; NULL in older records';
COMMENT ON COLUMN latency.within_sd IS 'standard deviation of a pair''s speed-up within a process, as a share; NULL with one process';
COMMENT ON COLUMN latency.between_sd IS 'standard deviation of the speed-up between processes, without what pairs explain, as a share; NULL with one process';
COMMENT ON COLUMN latency.noise IS 'noise floor: upper tolerance bound (95% of comparisons, with 95% confidence) of the relative difference of the dense model from itself (A/A run) in this phase; with one process, in the worst phase of the setting; NULL without an A/A run';
COMMENT ON COLUMN latency.noise_runs IS 'processes of the A/A run behind noise; with one process, its pairs of blocks. The fewer, the wider the bound: with 4 it reaches 1.9 times as far as a 95% interval, with 30 1.7 times';
COMMENT ON COLUMN latency.kernel_speedup IS 'speed-up of the engine''s kernel on the dense model, where no weight is zero: the kernel''s part of speedup; NULL where it was not timed, as in engines that skip no zeros';
COMMENT ON COLUMN latency.zeros_speedup IS 'the zeros'' part: speedup / kernel_speedup; where `kernel` is runs, not the bitmask, that format''s gain is included; NULL for dense, and where the variant ran a dense kernel';
COMMENT ON COLUMN latency.zeros_speedup_low IS 'lower end of the 95% interval of zeros_speedup, from the intervals of both';
COMMENT ON COLUMN latency.zeros_speedup_high IS 'upper end of the 95% interval of zeros_speedup';
COMMENT ON COLUMN latency.zeros_bound IS 'most that zeros can give by the bytes that they save: in decoding one sequence, bytes of the dense model''s prunable weights and output head / of the variant''s, with packed zeros, where both are in the number format that ran; zeros_speedup above it holds other gains, such as over a kernel that is slow without zeros; NULL elsewhere';
COMMENT ON COLUMN latency.resolution IS 'smallest relative difference that the row can show: the larger of noise and half the interval''s width; NULL where noise or speedup is';
COMMENT ON COLUMN latency.verdict IS 'faster or slower where the interval excludes 1 and speedup exceeds the noise; not steady where steady is false and part of the interval is within the noise; no noise floor where no A/A run was timed; else no difference detected; NULL for dense and load';
COMMENT ON COLUMN latency.baseline IS 'paired (dense in the same processes, in alternating blocks) or unpaired';
COMMENT ON COLUMN latency.kernel IS 'the kernel that ran';
COMMENT ON COLUMN latency.device IS 'cpu or cuda';
COMMENT ON COLUMN latency.dtype IS 'number format in which it ran';
COMMENT ON COLUMN latency.threads IS 'threads per rank';
COMMENT ON COLUMN latency.parity_l2 IS 'relative L2 distance of the engine''s logits from plain transformers''';
COMMENT ON COLUMN latency.parity_tolerance IS 'largest parity_l2 that is accepted';
COMMENT ON COLUMN latency.wraps_only IS 'true where the engine runs the same modules as plain transformers, so that agreement is no evidence';
COMMENT ON COLUMN latency.load_before IS 'load average of the machine before';
COMMENT ON COLUMN latency.load_after IS 'load average of the machine after';
COMMENT ON COLUMN latency.governor IS 'the processor''s frequency governor; empty where the system does not say';
COMMENT ON COLUMN latency.mhz_before IS 'mean clock of the processors before, MHz; NULL where the system does not say';
COMMENT ON COLUMN latency.mhz_after IS 'mean clock of the processors after, MHz';
COMMENT ON COLUMN latency.energy_source IS 'the counters behind energy_j (RAPL packages, NVML), or why there is none';
COMMENT ON COLUMN latency.placement IS 'system settings that decide where a model is in memory and on which processors it runs';
COMMENT ON COLUMN latency.stolen IS 'share of the processors'' time that a hypervisor gave to others meanwhile, 0 to 1; NULL where the system does not say';
COMMENT ON COLUMN latency.read_gb_per_second IS 'what the ranks together read from memory with all their threads, adding up an array, GB/s; NULL in older records';
COMMENT ON COLUMN latency.notes IS 'remarks on the measurement';
