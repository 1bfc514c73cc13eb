-- title: Perplexity against size: which variants are worth their bytes
-- finding: finding
-- about: the perplexity that a number of packed megabytes buys, with the Pareto front
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
-- rest: others
-- text: text
-- reference: dense = dense
-- yscale: log
-- xlabel: weight files in the packed format, MB
-- ylabel: perplexity (lower is better)
-- note: Numbers: sparsity, %. GGUF: the file from which the model's weights were dequantized. Solid and joined: no other variant made here is as good and smaller (to three digits); the GGUF takes no part in that front. The front joins measured values: within their 95% intervals (whiskers) neighbours may change places. Collapsed models, above 10,000, are left out.
-- boundnote: Grey: random masks, the baseline, and series without a point on a front.

WITH packed AS (
    SELECT variant_id, format, any_value(bytes) AS bytes FROM sizes WHERE format IN ('packed', 'source') GROUP BY ALL
), sized AS (
    -- The file that was fetched is a point as well: a GGUF has the same scores in fewer bytes.
    SELECT c.*, bytes, if(format = 'source', 'as fetched', if(method = 'dense', 'dense', line)) AS series, format
    FROM curves c
    JOIN packed USING (variant_id)
    WHERE scale = 'perplexity' AND NOT collapsed AND (format = 'packed' OR weights = 'dequantized')
), kept AS (
    -- The smallest file of each panel whose variant shows no loss.
    SELECT min(p.bytes / d.bytes) AS share
    FROM sized d
    JOIN sized p ON p.panel = d.panel AND NOT p.bound AND p.series <> 'as fetched' AND (p.series = 'dense' OR NOT _lost(p.verdict))
    WHERE d.series = 'dense'
    GROUP BY d.panel
)
SELECT DISTINCT round(bytes / 1e6, 2 - floor(log10(bytes / 1e6))::INTEGER) AS megabytes, score, low, high, dense, bound AND method <> 'dense' AS bound,
       if(method = 'dense', 100 + (format = 'source')::INTEGER, place) AS place, panel, series, if(format = 'source', NULL, false) AS high_wins,
       CASE WHEN format = 'source' THEN 'GGUF' WHEN sparsity = 0 THEN method ELSE percent_label(sparsity) END AS text,
       (SELECT format('The smallest file whose perplexity shows no loss takes {}% of dense''s bytes', range_label('{:.0f}', 100 * min(share), 100 * max(share))) FROM kept) AS finding
FROM sized
ORDER BY panel, bound, series = 'dense', series, text;
