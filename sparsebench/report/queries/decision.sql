-- For each model and each kind of recipe (zeros, bits, smaller shapes, …, and chains of two): the variant with the smallest file that
-- shows no loss on any task, or only losses shown to be below a point (2% of a perplexity), and the smallest that keeps half of dense's
-- score above chance, at no more than three times its perplexity. Tasks on which dense itself is at chance do not count. Of files that
-- differ by less than a hundredth of dense, the better variant. Only variants scored on as many tasks as any of their kind count, and only
-- those that save bytes or time. Speed is the largest shown for a token, in any engine and on any processor, beside plain torch there. `again`:
-- bits of weights that a file of about four bits gave, which has their grid.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), judged AS (
    SELECT s.model, s.weights, s.variant_id, s.task, s.n, s.scale, s.score / v.dense_score AS times, v.difference,
           _goodness(v.difference, s.higher_is_better) AS gain, s.collapsed, s.at_chance, v.loses_less, _lost(v.verdict) OR s.at_chance AS shown,
           _lost(v.verdict) AND NOT coalesce(v.loses_less, false) OR s.at_chance AS lost,
           -- Without a chance level, half of a score means nothing.
           CASE WHEN s.scale = 'perplexity' THEN times <= 3 WHEN s.chance IS NOT NULL THEN coalesce(v.retained >= 0.5, false) END AS half
    FROM scores s
    JOIN asked USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE NOT s.dense_at_chance
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), sampled AS (
    -- Where a variant was scored on fewer documents than another of its model, the table says on how many.
    SELECT *, if(n < max(n) OVER (PARTITION BY model, weights, task), format(' (n = {:,})', n), '') AS few FROM judged
), each AS (
    SELECT model, weights, variant_id, count(DISTINCT _benchmark(task)) AS tasks, tasks - count(DISTINCT _benchmark(task)) FILTER (loses_less IS NOT true) AS cleared, bool_or(lost) AS lost, count(*) FILTER (lost) AS losses,
           bool_and(half IS NOT false AND NOT collapsed AND NOT at_chance) AS works, bool_and(half) AS halved, max(if(scale = 'perplexity', times, 1 - gain)) AS worst,
           string_agg(task || if(scale = 'perplexity', format(if(abs(times - 1) < 0.05, ' ×{:.3f}', ' ×{:.2f}'), times), format(' {:+.3f}', difference)) || few, ', ' ORDER BY task) FILTER (shown) AS what, ' (' || string_agg(format('{} n = {:,}', task, n), ', ' ORDER BY task) FILTER (few <> '' AND NOT shown) || ')' AS few
    FROM sampled
    GROUP BY model, weights, variant_id
), files AS (
    SELECT model, variant_id, min(bytes) AS bytes FROM sizes WHERE format IN ('dense', 'packed') GROUP BY ALL
), plain AS (
    SELECT model, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY ALL
), timed AS (
    -- A token's speed, and beside it the prompt's and the whole request's in the same job, whatever they show.
    SELECT variant_id, split_part(machine_label(machine), ',', 1) AS processor, engine, max(speedup) FILTER (verdict = 'faster' AND phase IN ('decode', 'forward')) AS speedup,
           concat(format(', prompt ×{:.2f}', any_value(speedup) FILTER (phase = 'prefill')), format(', request ×{:.2f}', any_value(speedup) FILTER (phase = 'generate'))) AS beside
    FROM latency
    WHERE verdict IS NOT NULL
    GROUP BY variant_id, record_id, processor, engine
), placed AS (
    SELECT variant_id, processor, max(speedup) AS speedup, arg_max(engine, speedup) AS engine, arg_max(beside, speedup) AS beside FROM timed GROUP BY ALL
), times AS (
    SELECT variant_id, format('×{:.2f}{} ({}, {}', max(speedup), arg_max(beside, speedup), arg_max(engine, speedup), arg_max(processor, speedup))
               || coalesce('; none shown on ' || string_agg(processor, ', ' ORDER BY processor) FILTER (speedup IS NULL), '') || ')' AS speed
    FROM placed
    GROUP BY variant_id
), whole AS (
    SELECT e.*, k.kind, k.words AS recipe, f.bytes / p.bytes AS share, t.speed
    FROM each e
    JOIN asked USING (variant_id)
    JOIN _recipes k USING (variant_id)
    JOIN files f USING (variant_id)
    JOIN plain p ON p.model = e.model
    -- What does not pass the quality gate has no speed here.
    LEFT JOIN (FROM times SEMI JOIN (FROM gate WHERE passes) USING (variant_id)) t USING (variant_id)
    -- Chains of three kinds and more stand in the results alone.
    WHERE NOT k.chance AND k.kind NOT LIKE '% + % + %'
          -- An oracle is a bound, not a choice.
          AND e.variant_id NOT IN (SELECT variant_id FROM steps WHERE field = 'router' AND value = 'oracle')
    QUALIFY e.works AND e.tasks = max(e.tasks) OVER (PARTITION BY e.model, e.weights, k.kind) AND (share < 0.995 OR t.speed IS NOT NULL)
), chosen AS (
    SELECT 1 AS place, * FROM whole WHERE NOT lost
    QUALIFY row_number() OVER (PARTITION BY model, weights, kind ORDER BY round(share, 2), worst, recipe) = 1
    UNION ALL
    SELECT 2, * FROM whole WHERE lost AND halved
    QUALIFY row_number() OVER (PARTITION BY model, weights, kind ORDER BY round(share, 2), losses, worst, recipe) = 1
)
SELECT variant_id, model, weights, kind, recipe, coalesce(replace(what, ' -', ' −'), 'none shown' || coalesce(few, '')) AS what, cleared, tasks, share, speed, place,
       weights = 'dequantized' AND recipe LIKE '%int4%' AS again, if(again, ' (of 4-bit weights)', '') AS origin
FROM chosen c
-- A variant that keeps half is shown only where it is smaller than the one without a loss.
WHERE place = 1 OR NOT EXISTS (FROM chosen o WHERE o.model = c.model AND o.weights = c.weights AND o.kind = c.kind AND o.place = 1 AND o.share <= c.share)
UNION ALL
-- The file that a model was dequantized from holds dense's weights in fewer bytes, without any step.
SELECT DISTINCT NULL, model, weights, 'as fetched', 'GGUF', 'nothing', NULL, NULL, share, NULL, 0, false, ''
FROM sizes
WHERE format = 'source' AND weights = 'dequantized' AND model IN (SELECT model FROM chosen)
ORDER BY model, kind, place
