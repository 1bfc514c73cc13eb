-- title: Where zeros save time, and where fewer bits do
-- about: how much faster a variant is than dense, engine by engine, and whether it passes the quality gate
-- finding: finding
-- kind: forest
-- x: speedup
-- xlow: speedup_low
-- xhigh: speedup_high
-- y: label
-- series: series
-- place: place
-- bound: bound
-- facet: panel
-- xshare: yes
-- reference: dense = as fast as dense
-- xlabel: times as fast as dense
-- note: Beside dense in the same job, by torch's kernels, not in the machine's fastest dense engine; one rank, 95% intervals. hf: plain transformers, int8 and int4 in our kernels; sparse: our kernels that skip zeros; deepspeed: dense kernels. Ruined models are not shown.
-- boundnote: Grey: below the quality gate, 1.1 times dense's perplexity and 95% of its skill.

WITH timed AS (
    SELECT l.model, l.weights, l.machine, l.dtype, engine, phase, sparsity, variant_id, speedup, speedup_low, speedup_high, verdict, words, kind, l.started_at, _dense_kernel(kernel) AS plain,
           coalesce(passes, false) AS passes, g.ratio
    FROM latency l
    JOIN _recipes r USING (variant_id)
    LEFT JOIN (SELECT variant_id, passes, ruined, ratio FROM gate) g USING (variant_id)
    WHERE ranks = 1 AND phase IN ('prefill', 'decode', 'forward') AND speedup IS NOT NULL AND weights <> 'random' AND NOT r.chance
          AND NOT coalesce(ruined, false) AND kind IN ('bits', 'zeros', 'zeros + bits', 'smaller shapes')
), chosen AS (
    -- Of zeros at one sparsity the variant that loses least; of dense kernels the most zeros.
    FROM timed
    WHERE NOT plain OR kind <> 'zeros' OR engine = 'deepspeed'
    QUALIFY dense_rank() OVER (PARTITION BY model, machine, engine, if(kind = 'zeros', concat(if(plain, NULL, sparsity)), words), phase
                               ORDER BY if(plain, -sparsity, 0), ratio, started_at DESC, variant_id) = 1
), placed AS (
    SELECT *, concat(model_label(model, weights), ', ', machine_label(machine), if(count(DISTINCT dtype) OVER (PARTITION BY model, machine) > 1, ', ' || dtype, '')) AS panel,
           if(phase = 'prefill', 'its prompt', 'a token, or an encoder''s pass') AS what
    FROM chosen
    QUALIFY bool_or(NOT plain) OVER (PARTITION BY model, machine)
), numbered AS (
    SELECT *, dense_rank() OVER (ORDER BY bytes DESC, machine_label(machine) DESC, panel) AS number
    FROM placed
    JOIN (SELECT model, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY model) USING (model)
), told AS (
    SELECT max(speedup) FILTER (passes AND verdict = 'faster' AND phase <> 'prefill') AS best, arg_max(words, speedup) FILTER (passes AND verdict = 'faster' AND phase <> 'prefill') AS name,
           bool_or(passes AND verdict = 'faster' AND kind = 'zeros') AS zeros, max(speedup) FILTER (NOT passes AND kind = 'zeros' AND verdict = 'faster' AND phase <> 'prefill') AS most
    FROM numbered WHERE number <= 4
)
SELECT panel, concat(replace(words, '(text ', '('), ' (', engine, ')') AS label, if(passes, what, what || ', below the gate') AS series, NOT passes AS bound,
       (phase = 'prefill')::INTEGER AS place, speedup, speedup_low, speedup_high, 1 AS dense,
       (SELECT concat('Fewer bits write a token up to ', format('{:.1f}', best), ' times as fast (', name, ')',
                      if(zeros OR most IS NULL, '', format('; zeros, up to {:.1f} times, fail the quality gate where they gain', most))) FROM told WHERE best IS NOT NULL AND name LIKE 'int%') AS finding
FROM numbered
WHERE number <= 4
ORDER BY number, kind <> 'bits', kind <> 'zeros', kind, engine <> 'sparse', engine, sparsity, words, phase = 'prefill';
