-- title: Score against size: which variants are worth their bytes
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
-- front: higher_is_better
-- text: text
-- reference: chance = chance; dense = dense
-- xlabel: weight files in the packed format, MB
-- ylabel: score
-- note: Numbers: sparsity, %. Solid and joined: no other variant is as good and smaller (to three digits). The front is one of measured values: within their 95% intervals (whiskers) neighbours may change places.
-- boundnote: Grey: random masks, which know nothing.

SELECT DISTINCT round(z.bytes / 1e6, 2 - floor(log10(z.bytes / 1e6))::INTEGER) AS megabytes, score, low, high, higher_is_better, chance, dense,
       bound AND method <> 'dense' AS bound, if(method = 'dense', 100, place) AS place, panel,
       if(method = 'dense', 'dense', line) AS series, if(method = 'dense', 'dense', percent_label(sparsity)) AS text
FROM curves
JOIN (SELECT variant_id, any_value(bytes) AS bytes FROM sizes WHERE format = 'packed' GROUP BY ALL) z USING (variant_id)
WHERE scale <> 'perplexity'
ORDER BY panel, bound, series = 'dense', series, text;
