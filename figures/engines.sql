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
-- xlabel: times as fast as the fastest dense engine
-- note: Over the fastest engine that ran dense on that machine and workload; one rank, 95% intervals. hf: plain transformers, int8 and int4 in torch's integer kernels; sparse: our kernels that skip zeros; deepspeed: dense kernels; llamacpp: llama.cpp. Ruined models are not shown. One machine a model, that on which most engines ran dense; of more than four models the largest.
-- boundnote: The quality gate: 1.1 times dense's perplexity and 95% of its skill. Grey: does not pass it, or was not scored.

WITH timed AS (
    SELECT l.model, l.weights, l.machine, l.dtype, engine, workload, phase, sparsity, variant_id, speedup, speedup_low, speedup_high, gains, rival, rivals, words, kind, l.started_at, _dense_kernel(kernel) AS plain,
           coalesce(passes, false) AS passes, passes IS NULL AS unscored, g.ratio, request
    FROM (SELECT *, max(speedup) FILTER (phase IN ('generate', 'forward')) OVER (PARTITION BY record_id) AS request FROM _headlines) l
    JOIN _recipes r USING (variant_id)
    LEFT JOIN (SELECT variant_id, passes, ruined, ratio FROM gate) g USING (variant_id)
    WHERE ranks = 1 AND phase IN ('prefill', 'decode', 'forward') AND speedup IS NOT NULL AND weights <> 'random' AND NOT r.chance
          AND NOT coalesce(ruined, false) AND kind IN ('bits', 'zeros', 'zeros + bits', 'smaller shapes')
), chosen AS (
    -- Of zeros at one sparsity the variant that loses least; of dense kernels the most zeros.
    FROM timed
    WHERE NOT plain OR kind <> 'zeros' OR engine = 'deepspeed'
    QUALIFY dense_rank() OVER (PARTITION BY model, machine, engine, if(kind = 'zeros', concat(if(plain, NULL, sparsity)), words), phase
                               ORDER BY rivals DESC, if(plain, -sparsity, 0), ratio, workload, request DESC NULLS LAST, started_at DESC, variant_id) = 1
), placed AS (
    SELECT *, concat(model_label(model, weights), ', ', machine_label(machine)) AS panel, string_agg(DISTINCT replace(replace(rival, 'our dense', 'our'), 'plain ', ''), ', ' ORDER BY replace(replace(rival, 'our dense', 'our'), 'plain ', '')) OVER (PARTITION BY model, machine) AS dense_in,
           if(phase = 'prefill', 'its prompt', 'a token, or an encoder''s pass') AS what
    FROM chosen
    QUALIFY bool_or(NOT plain) OVER (PARTITION BY model, machine)
), numbered AS (
    -- Of a model the machine on which most engines ran dense, then the one with most rows.
    SELECT *, dense_rank() OVER (ORDER BY bytes DESC, panel) AS number
    FROM (FROM (SELECT *, max(rivals) OVER (PARTITION BY panel) AS ran, count(*) OVER (PARTITION BY panel) AS lines FROM placed)
          QUALIFY panel = first_value(panel) OVER (PARTITION BY model ORDER BY ran DESC, lines DESC, panel))
    JOIN (SELECT model, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY model) USING (model)
), told AS (
    -- Where several ran the dense model, and where plain torch alone did.
    SELECT rivals > 1 AS wide, any_value(rival) AS rival, max(speedup) FILTER (passes AND gains AND kind = 'bits') AS best, arg_max(words, speedup) FILTER (passes AND gains AND kind = 'bits') AS name,
           max(speedup) FILTER (passes AND gains AND kind LIKE 'zeros%') AS zeros, bool_or(passes AND NOT plain AND kind LIKE 'zeros%') AS tried
    FROM numbered
    WHERE number <= 4 AND phase <> 'prefill'
    GROUP BY wide
)
SELECT concat(panel, chr(10), if(passes, 'passes the quality gate', 'below the gate, or not scored'), ' (dense: ', dense_in, ')') AS panel,
       concat(replace(words, '(text ', '('), ' (', engine, ')', if(unscored, ', not scored', '')) AS label, if(passes, what, what || ', not passing') AS series, NOT passes AS bound,
       (phase = 'prefill')::INTEGER AS place, speedup, speedup_low, speedup_high, 1 AS dense,
       (SELECT concat('Of what passes the gate, fewer bits write a token up to ', string_agg(format('{:.1f} times as fast as {} ({})', best, if(wide, 'the fastest dense engine', 'plain torch'), name), ', ' ORDER BY wide DESC),
                      '; over ' || any_value(rival) FILTER (wide AND best IS NULL) || ' no gain is shown', if(bool_or(zeros IS NOT NULL), format('; zeros {:.1f} times', max(zeros)), if(bool_or(tried), '; no zeros pass and gain', '; no zeros that pass were timed here'))) FROM told HAVING count(best) > 0) AS finding
FROM numbered
WHERE number <= 4
ORDER BY number, NOT passes, kind <> 'bits', kind <> 'zeros', kind, engine <> 'sparse', engine, sparsity, words, phase = 'prefill';
