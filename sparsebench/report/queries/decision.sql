-- For each model and each kind of recipe (zeros, zeros + recovery, smaller shapes, …; fewer bits width by width): the variant with the
-- smallest file that passes the quality gate. Of files that differ by less than a hundredth of dense, the better one. Only variants
-- scored on as many tasks as any of their kind count, and only those that save bytes or time. The speed is that of a whole request, or
-- of an encoder's pass, over the fastest engine that ran the dense model there (`rival`). `again`: bits of weights that a file of about four
-- bits gave, which has their grid.
WITH asked AS (
    SELECT DISTINCT variant_id, sparsity FROM cells WHERE weights <> 'random' /* manifests */
), losses AS (
    SELECT variant_id, string_agg(task
               || if(ratio IS NULL, format(' {:+.3f}', difference),
                   format(if(abs(ratio - 1) < 0.05, ' ×{:.3f}', ' ×{:.2f}'), ratio)), ', ' ORDER BY task) AS what
    -- A task on which dense itself is at chance shows no loss.
    FROM (FROM vs_dense JOIN asked USING (variant_id)
        JOIN (SELECT manifest, record_id FROM scores WHERE NOT dense_at_chance) USING (manifest, record_id)
        QUALIFY row_number() OVER (PARTITION BY variant_id, task ORDER BY pairs DESC, manifest, record_id) = 1)
    -- A second metric of the same answers (g2p_per) says little more.
    WHERE _lost(verdict) AND _benchmark(task) = task
    GROUP BY variant_id
), weakest AS (
    -- The interval of the skill kept on the weakest task, on its largest sample, as in the gate.
    SELECT v.variant_id, v.task AS weakest, v.retained, v.retained_low, v.retained_high
    FROM vs_dense v
    JOIN asked USING (variant_id)
    WHERE v.retained IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY v.variant_id, v.task ORDER BY v.pairs DESC, v.manifest, v.record_id) = 1
), files AS (
    SELECT variant_id, min(bytes) AS bytes FROM sizes WHERE format IN ('dense', 'packed') GROUP BY variant_id
), plain AS (
    SELECT model, weights, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY ALL
), grouped AS (
    -- Widths of int4's groups other than the usual one are told.
    SELECT variant_id, ' in groups of ' || max(value) AS wide
    FROM steps
    WHERE step = 'quantize' AND name = 'int4' AND field = 'group' AND value <> '64'
    GROUP BY variant_id
), sampled AS (
    -- A variant scored on less than half of the documents of another of its model says less.
    SELECT variant_id, documents < max(documents) OVER (PARTITION BY model, weights) / 2 AS few
    FROM (SELECT variant_id, model, weights, sum(pairs) AS documents
        FROM (SELECT variant_id, model, weights, task, max(pairs) AS pairs FROM vs_dense JOIN asked USING (variant_id)
            GROUP BY ALL)
        GROUP BY ALL)
), timed AS (
    SELECT l.model, l.weights, words, engine, split_part(machine_label(machine), ',', 1) AS processor,
           any_value(speedup) FILTER (phase IN ('generate', 'forward') AND gains) AS request, max(rivals) AS ran,
           any_value(rival) FILTER (phase IN ('generate', 'forward')) AS rival,
           any_value(speedup) FILTER (phase IN ('decode', 'forward') AND gains) AS token,
           any_value(speedup) FILTER (phase = 'prefill') AS prompt,
           any_value(shown) FILTER (phase IN ('decode', 'forward')) AS token_shown,
           any_value(shown) FILTER (phase = 'prefill') AS prompt_shown,
           any_value(shown) FILTER (phase IN ('generate', 'forward')) AS request_shown,
           any_value(regexp_replace(workload, '^b1 p(\d+) g(\d+).*', 'a prompt of \1 tokens, an answer of \2')) AS workload
    FROM _headlines l
    JOIN _recipes USING (variant_id)
    WHERE verdict IS NOT NULL
    GROUP BY l.model, l.weights, words, record_id, engine, processor
    -- A job whose dense model other engines ran as well says more than one without; there one workload for all.
    QUALIFY row_number() OVER (PARTITION BY l.model, l.weights, words
        ORDER BY max(rivals) DESC, if(max(rivals) > 1, min(l.workload), ''), coalesce(request, token, 0) DESC,
            any_value(speedup) FILTER (phase IN ('generate', 'forward')) DESC NULLS LAST, engine, processor, record_id) = 1
), chosen AS (
    SELECT g.variant_id, g.model, g.weights, sparsity, k.kind, k.words || coalesce(wide, '') AS recipe,
           coalesce(replace(what, ' -', ' −'), 'none') AS what, g.tasks, g.retained, retained_low, retained_high, g.weakest,
           g.ratio,
           f.bytes / p.bytes AS share, request, token, if(coalesce(request, token) IS NULL, NULL, prompt) AS prompt, token_shown,
           prompt_shown, request_shown, workload, engine, processor, rival, ran AS rivals,
           g.weights = 'dequantized' AND k.words LIKE '%int4%' AS again
    FROM gate g
    JOIN asked USING (variant_id)
    JOIN _recipes k USING (variant_id)
    JOIN files f USING (variant_id)
    JOIN plain p ON (p.model, p.weights) = (g.model, g.weights)
    LEFT JOIN losses USING (variant_id)
    LEFT JOIN weakest w ON (w.variant_id, w.weakest, w.retained) = (g.variant_id, g.weakest, g.retained)
    LEFT JOIN grouped USING (variant_id)
    LEFT JOIN sampled USING (variant_id)
    -- A variant made with other libraries is another, but the same recipe.
    LEFT JOIN timed ON (timed.model, timed.weights, timed.words) = (g.model, g.weights, k.words)
    -- Chains of three kinds and more stand in the results alone; an oracle is a bound, not a choice.
    WHERE g.passes AND NOT k.chance AND k.kind NOT LIKE '% + % + %'
          AND g.variant_id NOT IN (SELECT variant_id FROM steps WHERE field = 'router' AND value = 'oracle')
          AND (k.kind NOT LIKE '%skipped inputs%' OR request IS NOT NULL OR token IS NOT NULL)
    QUALIFY (share < 0.995 OR request IS NOT NULL OR token IS NOT NULL)
        AND row_number() OVER (PARTITION BY g.model, g.weights, if(k.kind = 'bits', recipe, k.kind)
                               ORDER BY g.tasks DESC, few, round(share, 2), coalesce(g.ratio, 1), g.retained DESC, k.words) = 1
)
-- `first`: those of the first table, each model's smallest file and the fastest of its others (else the next in size), before the rest.
SELECT *, nth <= 2 OR row_number() OVER (ORDER BY nth, model) <= 8 AS first
FROM (SELECT *, row_number() OVER (PARTITION BY model, weights ORDER BY size > 1, request DESC NULLS LAST, size) AS nth
      FROM (SELECT *, row_number() OVER (PARTITION BY model, weights ORDER BY share, recipe) AS size FROM chosen))
ORDER BY model, list_position(['bits', 'zeros'], kind) NULLS LAST, kind, share
