-- title: Score against size: which variants are worth their bytes
-- finding: finding
-- about: the score that a number of packed megabytes buys, with the Pareto front
-- kind: scatter
-- x: megabytes
-- y: score
-- low: low
-- high: high
-- series: series
-- place: place
-- facet: panel
-- bound: bound
-- front: high_wins
-- text: text
-- reference: chance = chance; dense = dense
-- xlabel: weight files in the packed format, MB
-- ylabel: score
-- note: Numbers: percent of the weights that are zero, or of the blocks' parameters that were removed. GGUF: the file that was fetched; its weights are the dense model's. Solid and joined: no other variant made here is as good and smaller (to three digits); the GGUF takes no part in that front. The front joins measured values: within their 95% intervals (whiskers) neighbours may change places.
-- boundnote: Grey: random masks, the baseline; they take no part in the front.

WITH points AS (
    SELECT DISTINCT z.bytes / 1e6 AS megabytes, verdict, score, low, high, if(format = 'source' OR bound AND method <> 'dense', NULL, higher_is_better) AS high_wins, chance, dense,
           bound AND method <> 'dense' AS bound, panel, model, weights, task, metric, n,
           CASE WHEN format = 'source' THEN 'as fetched' WHEN method = 'dense' THEN 'dense' WHEN bound THEN 'random zeros' ELSE kind END AS series, _kind_place(series) AS place,
           CASE WHEN format = 'source' THEN 'GGUF' WHEN method = 'dense' THEN 'dense' WHEN NOT bound THEN replace(words, '%', '') END AS text
    FROM curves
    JOIN (SELECT variant_id, format, any_value(bytes) AS bytes FROM sizes WHERE format IN ('packed', 'source') GROUP BY ALL) z USING (variant_id)
    LEFT JOIN (SELECT variant_id, kind, words FROM _recipes) USING (variant_id)
    WHERE scale <> 'perplexity' AND (format = 'packed' OR method = 'dense' AND weights = 'dequantized')
      -- A task on which dense itself is not above chance cannot tell variants apart.
      AND NOT dense_at_chance
), shown AS (
    -- Of a task that was scored on several samples: the largest, and the one with the most kinds of recipes.
    SELECT * EXCLUDE (model, weights, task, metric, n, kinds)
    FROM (SELECT p.*, count(DISTINCT series) OVER (PARTITION BY panel) AS kinds FROM points p)
    WINDOW one AS (PARTITION BY model, weights, task, metric)
    QUALIFY n = max(n) OVER one OR (kinds, n) = max((kinds, n)) OVER one
), kept AS (
    -- The smallest file of each panel whose variant shows no loss.
    SELECT min(p.megabytes / d.megabytes) AS share, any_value(g.megabytes / d.megabytes) AS fetched
    FROM shown d
    JOIN shown p ON p.panel = d.panel AND NOT p.bound AND (p.series = 'dense' OR NOT _lost(p.verdict))
    LEFT JOIN shown g ON g.panel = d.panel AND g.series = 'as fetched'
    WHERE d.series = 'dense'
    GROUP BY d.panel
)
SELECT * EXCLUDE (verdict) REPLACE (round(megabytes, 2 - floor(log10(megabytes))::INTEGER) AS megabytes),
       (SELECT format('In each panel, the smallest file made here that shows no loss takes {}% of dense''s bytes', range_label('{:.0f}', 100 * min(share), 100 * max(share)))
               || coalesce(format('; the GGUF {}%', range_label('{:.0f}', 100 * min(fetched), 100 * max(fetched))), '') FROM kept) AS finding
FROM shown
ORDER BY panel, bound, series = 'dense', series, text;
