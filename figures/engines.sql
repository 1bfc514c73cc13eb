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
-- note: 1×128+16 tokens: sequences at once, prompt tokens, new tokens. One rank. Dense runs in the same engine by torch's kernels, not in the machine's fastest dense engine. Paired ratios with 95% intervals. At 0% is the dense model against itself, the noise; in the sparse engine, where it was timed, the gain of its kernel without zeros. Ring: the lowest sparsity that is faster beyond interval and noise. Fewer bits without zeros are at 0%. Ruined: collapsed, at chance, or above three times the dense perplexity. Where a line ends early, the rest was not measured or failed.

WITH chosen AS (
    SELECT *, line <> 'dense' AND count(DISTINCT line) FILTER (method <> 'dense') OVER () > 1 AS several,
           sparsity = min(sparsity) FILTER (verdict = 'faster') OVER (PARTITION BY panel, engine, line) AS first_faster
    FROM (SELECT s.*, coalesce(min(replace(s.line, inputs, '') || calibrated) FILTER (method <> 'dense') OVER (PARTITION BY panel, engine, s.line), s.line) AS name
          FROM speedups s JOIN ways USING (variant_id))
    WHERE ranks = 1
      -- Zeros alone, or bits alone: a chain's time depends on more than sparsity (kinds_time shows it).
      AND variant_id NOT IN (SELECT variant_id FROM steps GROUP BY variant_id HAVING bool_or(step NOT IN ('prune', 'quantize')) OR max(position) > 1)
    -- The dense model is the first point of each line, and a point alone where an engine has no line.
    QUALIFY count(DISTINCT engine) OVER (PARTITION BY panel) > 1 AND (line = 'dense' OR bool_or(method <> 'dense') OVER (PARTITION BY panel, engine, line))
), told AS (
    -- Kernels that skip zeros, beside the dense model in the same engine: the fastest variant that is sound, and the fastest of all. Then dense kernels.
    SELECT max(speedup) FILTER (won AND NOT ruined) AS best, arg_max([zeros_bound], speedup) FILTER (won AND NOT ruined)[1] AS allowed, arg_max(sparsity, speedup) FILTER (won AND NOT ruined) AS zeros,
           arg_max(split_part(machine_label(machine), ',', 1), speedup) FILTER (won AND NOT ruined) AS setting, arg_max(model, speedup) FILTER (won AND NOT ruined) AS named,
           arg_max([prompt], speedup) FILTER (won AND NOT ruined)[1] AS prompt, max(speedup) FILTER (won AND ruined) AS most, arg_max(sparsity, speedup) FILTER (won AND ruined) AS most_zeros, arg_max(model, speedup) FILTER (won AND ruined) AS ruin,
           count(*) FILTER (plain AND sparsity > 0) AS dense_kernels, count(*) FILTER (plain AND sparsity > 0 AND verdict = 'faster') AS dense_faster
    FROM (SELECT *, _dense_kernel(kernel) AS plain, NOT plain AND sparsity > 0 AND verdict = 'faster' AS won, variant_id IN (FROM _ruined) AS ruined,
                 (SELECT any_value(p.speedup) FROM chosen p WHERE p.phase = 'prefill' AND (p.variant_id, p.machine, p.engine, p.dtype, p.workload) = (c.variant_id, c.machine, c.engine, c.dtype, c.workload)) AS prompt
          FROM chosen c WHERE phase = 'decode' AND weights <> 'random')
)
SELECT sparsity, speedup, speedup_low, speedup_high, engine_label(engine, NULL) || if(several, ', ' || name, '') AS series, panel,
       coalesce(first_faster, false) AS first_faster, 1 AS dense,
       (SELECT CASE WHEN best IS NULL THEN format('Skipping zeros decodes faster in ruined models alone (×{:.2f} at {}%)', most, percent_label(most_zeros))
                    ELSE format('{} on {}: skipping {}% zeros decodes ×{:.2f} ({})', named, setting, percent_label(zeros), best,
                                concat(coalesce(format('the saved bytes allow ×{:.2f}', allowed), 'its kernel''s own gain included'), format('; its prompt ×{:.2f}', prompt)))
                         || if(most > best, format(', {}% zeros ×{:.2f} in a ruined model{}', percent_label(most_zeros), most, if(ruin = named, '', ' (' || ruin || ')')), '') END
               || if(dense_kernels > 0 AND dense_faster = 0, '; zeros gain nothing in dense kernels', '') FROM told) AS finding
FROM chosen
ORDER BY weights = 'random', model, list_position(['decode', 'prefill', 'encode', 'forward'], phase), panel, series, sparsity;
