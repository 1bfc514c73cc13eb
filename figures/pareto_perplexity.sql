-- title: Perplexity against size: which variants are worth their bytes
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
-- front: low
-- text: text
-- reference: dense = dense
-- yscale: log
-- xlabel: weight files in the packed format, MB
-- ylabel: perplexity (lower is better)
-- note: Numbers: sparsity, %. Solid and joined: no other variant is as good and smaller (to three digits). The front is one of measured values: within their 95% intervals (whiskers) neighbours may change places. Broken models, above 10,000, are left out.
-- boundnote: Grey: random masks, which know nothing.

SELECT DISTINCT round(z.bytes / 1e6, 2 - floor(log10(z.bytes / 1e6))::INTEGER) AS megabytes, score, low, high, dense, bound AND method <> 'dense' AS bound, if(method = 'dense', 100, place) AS place, panel,
       if(method = 'dense', 'dense', line) AS series, if(method = 'dense', 'dense', percent_label(sparsity)) AS text
FROM curves
JOIN (SELECT variant_id, any_value(bytes) AS bytes FROM sizes WHERE format = 'packed' GROUP BY ALL) z USING (variant_id)
WHERE metric LIKE '%perplexity' AND score <= 1e4
ORDER BY panel, bound, series = 'dense', series, text;
