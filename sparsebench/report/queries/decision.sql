-- For each model and each kind of recipe (zeros, bits, smaller, …, and chains of them): the variant with the smallest file that shows
-- no loss on any task, or only losses below a point (2% of a perplexity), and the smallest that keeps half of dense's score above
-- chance, at no more than three times its perplexity. Of files that differ by less than a hundredth of dense, the better variant. Only
-- variants scored on as many tasks as any of their kind count. Speed is the largest shown, in any engine, beside dense in that engine.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), judged AS (
    SELECT s.model, s.weights, s.variant_id, s.task, s.scale, s.score / v.dense_score AS ratio, v.difference, _goodness(v.difference, s.higher_is_better) AS v_gain, v.verdict, s.collapsed,
           s.at_chance, _lost(v.verdict) AND NOT coalesce(v.loses_less, false) OR s.at_chance AS lost, if(scale = 'perplexity', ratio <= 3, coalesce(v.retained >= 0.5, false)) AS half
    FROM scores s
    JOIN asked USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE v.verdict <> 'invalid'
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), each AS (
    SELECT model, weights, variant_id, count(*) AS tasks, bool_or(lost) AS lost, bool_and(half AND NOT collapsed AND NOT at_chance) AS works, count(*) FILTER (lost) AS losses, bool_or(_lost(verdict)) AS small, max(if(scale = 'perplexity', ratio, 1 - v_gain)) AS worst,
           string_agg(task || if(scale = 'perplexity', format(' ×{:.2f}', ratio), format(' {:+.3f}', difference)), ', ' ORDER BY task) FILTER (lost) AS what
    FROM judged
    GROUP BY model, weights, variant_id
), files AS (
    SELECT model, variant_id, min(bytes) AS bytes FROM sizes WHERE format IN ('dense', 'packed') GROUP BY ALL
), plain AS (
    SELECT model, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY ALL
), times AS (
    SELECT variant_id, max(speedup) AS speedup, arg_max(engine, speedup) AS engine, arg_max(phase, speedup) AS phase
    FROM latency
    WHERE verdict = 'faster' AND phase IN ('decode', 'forward')
    GROUP BY variant_id
), whole AS (
    SELECT e.*, k.kind, if(contains(k.kind, '+') OR k.kind IN ('smaller shapes', 'skipped inputs'), k.words, v.recipe) AS recipe, f.bytes, f.bytes / p.bytes AS share, t.speedup, t.engine, t.phase
    FROM each e
    JOIN _recipes k USING (variant_id)
    JOIN variants v USING (variant_id)
    JOIN files f USING (variant_id)
    JOIN plain p ON p.model = e.model
    LEFT JOIN times t USING (variant_id)
    -- Chains of three kinds and more stand in the results alone.
    WHERE NOT k.chance AND k.kind NOT LIKE '% + % + %'
          -- An oracle is a bound, not a choice.
          AND e.variant_id NOT IN (SELECT variant_id FROM steps WHERE field = 'router' AND value = 'oracle')
    QUALIFY e.works AND e.tasks = max(e.tasks) OVER (PARTITION BY e.model, e.weights, k.kind)
), chosen AS (
    SELECT if(small, 'small loss', 'no loss detected') AS claim, 1 AS place, * FROM whole WHERE NOT lost
    QUALIFY row_number() OVER (PARTITION BY model, weights, kind ORDER BY round(share, 2), worst, recipe) = 1
    UNION ALL
    SELECT 'keeps half', 2, * FROM whole WHERE lost
    QUALIFY row_number() OVER (PARTITION BY model, weights, kind ORDER BY round(share, 2), losses, worst, recipe) = 1
)
SELECT model, weights, kind, claim, recipe, tasks, coalesce(replace(what, ' -', ' −'), if(small, 'less than a point or 2%', 'none detected')) AS what, share, speedup, engine, phase, place
FROM chosen c
-- A variant that keeps half is shown only where it is smaller than the one without a loss.
WHERE place = 1 OR NOT EXISTS (FROM chosen o WHERE o.model = c.model AND o.weights = c.weights AND o.kind = c.kind AND o.place = 1 AND o.share <= c.share)
UNION ALL
-- The file that a model was dequantized from holds dense's weights in fewer bytes, without any step.
SELECT DISTINCT model, weights, 'as fetched', 'dense was made from it', 'GGUF', NULL, 'nothing', share, NULL, NULL, NULL, 0
FROM sizes
WHERE format = 'source' AND weights = 'dequantized' AND model IN (SELECT model FROM chosen)
ORDER BY model, kind, place
