-- For each model and each kind of recipe (zeros, bits, smaller shapes, …, and chains of two): the variant with the smallest file that
-- shows no loss on any task, or only losses shown to be below a point (2% of a perplexity), and the smallest that keeps half of dense's
-- score above chance, at no more than three times its perplexity. Tasks on which dense itself is at chance do not count. Of files that
-- differ by less than a hundredth of dense, the better variant. Only variants scored on as many tasks as any of their kind count, and only
-- those that save bytes or time. Speed is the largest shown for a token, in any engine and on any processor, beside plain torch there. `again`:
-- bits of weights that a file of about four bits gave, which has their grid.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
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
    SELECT e.*, t.speed
    FROM _losses e
    JOIN asked USING (variant_id)
    LEFT JOIN times t USING (variant_id)
    -- Chains of three kinds and more stand in the results alone.
    WHERE e.kind NOT LIKE '% + % + %'
    QUALIFY e.works AND e.tasks = max(e.tasks) OVER (PARTITION BY e.model, e.weights, e.kind) AND (e.share < 0.995 OR t.speed IS NOT NULL)
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
