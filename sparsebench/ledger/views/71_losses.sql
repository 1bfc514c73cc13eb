-- What each variant loses over all of its tasks, and its smallest file: one row per variant without chance in its recipe, under the name
-- that the ledger first had for its model: manifests may name one checkpoint differently. Tasks on which dense itself is at chance do not count. `lost`: a loss is shown on some task that is not shown to be below a point (2% of a perplexity).
-- `works`: on every task it keeps half of dense's score above chance, at no more than three times its perplexity. `worst`: 1 plus the largest
-- loss, in points or as a ratio of perplexities.
CREATE OR REPLACE VIEW _losses AS
WITH judged AS (
    SELECT b.model, s.weights, s.variant_id, s.task, s.n, s.scale, s.score / v.dense_score AS times, v.difference,
           _goodness(v.difference, s.higher_is_better) AS gain, s.collapsed, s.at_chance, v.loses_less, _lost(v.verdict) OR s.at_chance AS shown,
           _lost(v.verdict) AND NOT coalesce(v.loses_less, false) OR s.at_chance AS lost,
           -- Without a chance level, half of a score means nothing.
           CASE WHEN s.scale = 'perplexity' THEN times <= 3 WHEN s.chance IS NOT NULL THEN coalesce(v.retained >= 0.5, false) END AS half
    FROM scores s
    JOIN vs_dense v USING (manifest, record_id)
    JOIN base.variants b ON b.variant_id = s.variant_id
    WHERE NOT s.dense_at_chance
    QUALIFY row_number() OVER (PARTITION BY s.variant_id, s.task ORDER BY s.n DESC, s.manifest, s.record_id) = 1
), sampled AS (
    -- Where a variant was scored on fewer documents than another of its model, the table says on how many.
    SELECT *, if(n < max(n) OVER (PARTITION BY model, weights, task), format(' (n = {:,})', n), '') AS few FROM judged
), each AS (
    SELECT model, weights, variant_id, count(DISTINCT _benchmark(task)) AS tasks,
           tasks - count(DISTINCT _benchmark(task)) FILTER (loses_less IS NOT true) AS cleared, bool_or(lost) AS lost,
           count(*) FILTER (lost) AS losses,
           bool_and(half IS NOT false AND NOT collapsed AND NOT at_chance) AS works, bool_and(half) AS halved,
           max(if(scale = 'perplexity', times, 1 - gain)) AS worst,
           string_agg(task || if(scale = 'perplexity', format(if(abs(times - 1) < 0.05, ' ×{:.3f}', ' ×{:.2f}'), times),
               format(' {:+.3f}', difference)) || few, ', ' ORDER BY task) FILTER (shown) AS what,
                   ' (' || string_agg(format('{} n = {:,}', task, n), ', ' ORDER BY task) FILTER (few <> '' AND NOT shown)
                       || ')' AS few
    FROM sampled
    GROUP BY model, weights, variant_id
), files AS (
    SELECT variant_id, min(bytes) AS bytes, min(share) AS share FROM sizes WHERE format IN ('dense', 'packed') GROUP BY variant_id
)
SELECT e.*, k.kind, k.words AS recipe, f.bytes, f.share
FROM each e
JOIN _recipes k USING (variant_id)
JOIN files f USING (variant_id)
-- An oracle is a bound, not a choice.
WHERE NOT k.chance AND e.variant_id NOT IN (SELECT variant_id FROM steps WHERE field = 'router' AND value = 'oracle');
