-- title: Sparsity that each transformer block got
-- about: achieved sparsity by transformer block where a method may spread it; a line is one sparsity of the model
-- kind: line
-- x: layer
-- y: achieved
-- series: series
-- facet: facet
-- columns: 2
-- yscale: percent
-- xlabel: transformer block
-- ylabel: sparsity of the block, %
-- note: Zeros are counted in the written files. A line's number is the sparsity of the whole model: a uniform allocation would give a flat line there.

SELECT DISTINCT ON (facet, series, layer) layer, achieved, percent_label(sparsity) || '%' AS series,
       concat(model_label(model, weights), chr(10), line, if(side <> '' AND family = 'encoder-decoder', ', ' || side, '')) AS facet
FROM layer_sparsity
JOIN ways USING (variant_id)
WHERE (allocation <> 'uniform' OR granularity = 'global') AND weights <> 'random' AND layer IS NOT NULL
ORDER BY facet, sparsity, series, layer, variant_id;
