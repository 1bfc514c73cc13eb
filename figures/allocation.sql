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
-- note: Zeros are counted in the written files. A line's number is the sparsity of the whole model: a uniform allocation would give a flat line there. Of more than four panels those whose blocks differ most are drawn.

WITH spread AS (
    SELECT DISTINCT ON (facet, series, layer) layer, achieved, sparsity, model, line, percent_label(sparsity) || '%' AS series,
           concat(model_label(model, weights), chr(10), line, if(side <> '' AND family = 'encoder-decoder', ', ' || side, '')) AS facet
    FROM layer_sparsity
    JOIN ways USING (variant_id)
    WHERE (allocation <> 'uniform' OR granularity = 'global') AND weights <> 'random' AND layer IS NOT NULL
    ORDER BY facet, series, layer, variant_id
), ranges AS (
    SELECT facet, sparsity, model, line, min(achieved) AS least, max(achieved) AS most FROM spread GROUP BY ALL
), widest AS (
    FROM (SELECT DISTINCT ON (facet) * FROM ranges ORDER BY facet, most - least DESC, sparsity) ORDER BY most - least DESC, facet LIMIT 4
)
SELECT layer, achieved, series, facet,
       (SELECT format('Of {}% zeros, {} gives one block of {} {:.0f}%, another {:.0f}%', percent_label(sparsity), line, model,
           100 * least, 100 * most)
        FROM widest ORDER BY most - least DESC, facet LIMIT 1) AS finding
FROM spread
WHERE facet IN (SELECT facet FROM widest)
ORDER BY facet, sparsity, layer;
