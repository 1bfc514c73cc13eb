-- title: Sparsity that each transformer block got
-- finding: finding
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

WITH spread AS (
    FROM layer_sparsity
    JOIN ways USING (variant_id)
    WHERE (allocation <> 'uniform' OR granularity = 'global') AND weights <> 'random' AND layer IS NOT NULL
)
SELECT DISTINCT ON (facet, series, layer) layer, achieved, percent_label(sparsity) || '%' AS series,
       concat(model_label(model, weights), chr(10), line, if(side <> '' AND family = 'encoder-decoder', ', ' || side, '')) AS facet,
       (SELECT format('Of {}% zeros, {} gives one block of {} {:.0f}%, another {:.0f}%', percent_label(any_value(sparsity)), any_value(line), model, 100 * min(achieved), 100 * max(achieved))
        FROM spread GROUP BY variant_id, model, side ORDER BY max(achieved) - min(achieved) DESC, model, any_value(line) LIMIT 1) AS finding
FROM spread
ORDER BY facet, sparsity, series, layer, variant_id;
