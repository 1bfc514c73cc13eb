-- title: Where zeros save time, and where fewer bits do
-- about: how much faster a variant writes a token than dense, engine by engine, and whether it passes the quality gate
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
-- xlabel: a token (an encoder: the whole pass): times as fast as the fastest dense engine
-- footnote: left_out
-- note: Over the fastest engine that ran dense on that machine and workload, for a token (of an encoder the whole pass); one rank, 95% intervals. ours: our kernels, which skip zeros; torch: plain transformers, integers in torch's kernels. Ruined models are not shown. Of a variant's engines the fastest is shown, on the machine where most engines ran the model dense.
-- boundnote: The quality gate: 1.1 times dense's perplexity and 95% of its skill. Grey: does not pass it, or was not scored.

WITH timed AS (
    SELECT l.model, l.weights, l.machine, l.dtype, engine, workload, phase, sparsity, variant_id, speedup, speedup_low,
           speedup_high, gains, rival, rivals, words, kind, l.started_at, _dense_kernel(kernel) AS plain,
           coalesce(passes, false) AS passes, passes IS NULL AS unscored, g.ratio, request
    FROM (SELECT *, max(speedup) FILTER (phase IN ('generate', 'forward')) OVER (PARTITION BY record_id) AS request FROM _headlines) l
    JOIN _recipes r USING (variant_id)
    LEFT JOIN (SELECT variant_id, passes, ruined, ratio FROM gate) g USING (variant_id)
    WHERE ranks = 1 AND phase IN ('decode', 'forward') AND speedup IS NOT NULL AND weights <> 'random' AND NOT r.chance
          AND NOT coalesce(ruined, false) AND kind IN ('bits', 'zeros', 'zeros + bits', 'smaller shapes')
), chosen AS (
    -- Of zeros at one sparsity the variant that loses least; of dense kernels the most zeros.
    FROM timed
    WHERE NOT plain OR kind <> 'zeros' OR engine = 'deepspeed'
    QUALIFY dense_rank() OVER (PARTITION BY model, weights, machine, engine, if(kind = 'zeros', concat(if(plain, NULL, sparsity)), words)
                               ORDER BY rivals DESC, if(plain, -sparsity, 0), ratio, workload, request DESC NULLS LAST,
                                   started_at DESC, variant_id) = 1
), placed AS (
    SELECT *, concat(model_label(model, weights), ', ', machine_label(machine)) AS panel
    FROM chosen
    QUALIFY bool_or(NOT plain) OVER (PARTITION BY model, weights, machine)
), quickest AS (
    -- Of a variant's engines the one that writes a token fastest.
    FROM placed
    QUALIFY engine = arg_max(engine, speedup) OVER (PARTITION BY panel, words)
), numbered AS (
    -- Of a model the machine on which most engines ran dense, then the one with most rows.
    SELECT *, dense_rank() OVER (ORDER BY bytes DESC, panel) AS number
    FROM (FROM (SELECT *, max(rivals) OVER (PARTITION BY panel) AS ran, count(*) OVER (PARTITION BY panel) AS lines FROM quickest)
          QUALIFY panel = first_value(panel) OVER (PARTITION BY model, weights ORDER BY ran DESC, lines DESC, panel))
    JOIN (SELECT model, weights, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY ALL) USING (model, weights)
), fastest AS (
    -- What ran dense fastest.
    SELECT panel, array_to_string(list_sort(list_distinct(list(replace(replace(rival, 'plain ', ''), 'our dense kernels',
               'ours')))), ' or ') AS rivals
    FROM numbered
    GROUP BY panel
), told AS (
    -- Where several ran the dense model, and where plain torch alone did.
    SELECT rivals > 1 AS wide, any_value(rival) AS rival, max(speedup) FILTER (passes AND gains AND kind = 'bits') AS best,
           arg_max(words, speedup) FILTER (passes AND gains AND kind = 'bits') AS name,
           max(speedup) FILTER (passes AND gains AND kind LIKE 'zeros%') AS zeros, bool_or(passes AND NOT plain AND kind LIKE 'zeros%') AS tried
    FROM numbered
    WHERE number <= 4
    GROUP BY wide
)
SELECT concat(panel, chr(10), 'fastest dense: ', fastest.rivals) AS panel,
       concat(replace(words, '(text ', '('), ' (', _engine_word(engine), ')', if(unscored, ', not scored', '')) AS label,
       if(passes, kind, 'not passing') AS series, NOT passes AS bound,
       _kind_place(if(passes, kind, 'bits')) AS place, speedup, speedup_low, speedup_high, 1 AS dense,
       (SELECT 'Not drawn: ' || string_agg(DISTINCT model, ', ' ORDER BY model) || '.' FROM numbered WHERE number > 4) AS left_out,
       (SELECT concat('Of what passes the gate, fewer bits write a token up to ',
           string_agg(format('{:.1f} times as fast as {} ({})', best, if(wide, 'the fastest dense engine', 'plain torch'), name),
               ', ' ORDER BY wide DESC),
                      '; over ' || any_value(rival) FILTER (wide AND best IS NULL) || ' no gain is shown',
                      if(bool_or(zeros IS NOT NULL), format('; zeros {:.1f} times', max(zeros)),
                          if(bool_or(tried), '; no zeros pass and gain', '; no zeros that pass were skipped'))) FROM told
                              HAVING count(best) > 0) AS finding
FROM numbered
JOIN fastest USING (panel)
WHERE number <= 4
ORDER BY number, NOT passes, kind <> 'bits', kind <> 'zeros', kind, engine <> 'sparse', engine, sparsity, words;
