-- title: Where zeros save time, and where 8 bits do: speed-up of each engine over the dense model
-- about: the sparsity from which an engine is faster than dense, and whether that beats int8
-- finding: finding
-- kind: line
-- x: sparsity
-- y: speedup
-- low: speedup_low
-- high: speedup_high
-- series: series
-- facet: panel
-- mark: first_faster
-- reference: dense = break-even
-- columns: 2
-- ymin: 0
-- yshare: yes
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: speed-up over dense
-- note: One rank. Paired ratios with 95% intervals. At 0% is the dense model against itself, the noise; in the sparse engine, where it was timed, the gain of its kernel without zeros. Ring: the lowest sparsity that is faster beyond interval and noise. Fewer bits without zeros are at 0%. Where a line ends early, the rest was not measured or failed (figure failures).

WITH chosen AS (
    SELECT *, line <> 'dense' AND count(DISTINCT line) FILTER (method <> 'dense') OVER () > 1 AS several,
           sparsity = min(sparsity) FILTER (verdict = 'faster') OVER (PARTITION BY panel, engine, line) AS first_faster
    FROM speedups
    WHERE ranks = 1
      -- Zeros alone, or bits alone: a chain's time depends on more than sparsity (kinds_time shows it).
      AND variant_id NOT IN (SELECT variant_id FROM steps GROUP BY variant_id HAVING bool_or(step NOT IN ('prune', 'quantize')) OR max(position) > 1)
    -- The dense model is the first point of each line, and a point alone where an engine has no line.
    QUALIFY count(DISTINCT engine) OVER (PARTITION BY panel) > 1 AND (line = 'dense' OR bool_or(method <> 'dense') OVER (PARTITION BY panel, engine, line))
), told AS (
    -- Dense kernels are those of engines that skip no zero, beside the dense model in the same engine.
    SELECT max(speedup) FILTER (skips AND verdict = 'faster') AS best, arg_max([zeros_speedup], speedup) FILTER (skips AND verdict = 'faster')[1] AS by_zeros, arg_max(sparsity, speedup) FILTER (skips AND verdict = 'faster') AS zeros,
           arg_max(machine_label(machine), speedup) FILTER (skips AND verdict = 'faster') AS setting,
           count(*) FILTER (engine IN ('hf', 'deepspeed') AND sparsity > 0) AS plain, count(*) FILTER (engine IN ('hf', 'deepspeed') AND sparsity > 0 AND verdict = 'faster') AS plain_faster
    FROM (SELECT *, engine NOT IN ('hf', 'deepspeed', 'deepspeed-zero3') AND sparsity > 0 AS skips FROM chosen WHERE phase = 'decode' AND weights <> 'random')
)
SELECT sparsity, speedup, speedup_low, speedup_high, engine_label(engine, NULL) || if(several, ', ' || line, '') AS series, panel,
       coalesce(first_faster, false) AS first_faster, 1 AS dense,
       (SELECT format('Skipping zeros decodes up to {:.2f} times as fast ({}; {}% zeros, {})', best,
                      coalesce(format('the zeros'' part ×{:.2f}', by_zeros), 'its kernel''s own gain included'), percent_label(zeros), setting)
               || if(plain > 0 AND plain_faster = 0, '; dense kernels show no gain', '') FROM told) AS finding
FROM chosen
ORDER BY weights = 'random', model, list_position(['decode', 'prefill', 'encode', 'forward'], phase), panel, series, sparsity;
