-- title: How many weights are small: cumulative share of |w| below a threshold, dense models
-- finding: finding
-- about: the distribution of weight magnitudes by model and depth, beside a normal distribution's
-- kind: curve
-- x: threshold
-- y: value
-- series: series
-- facet: facet
-- row: model
-- bound: bound
-- columns: 2
-- xscale: log
-- xlabel: threshold on |w|, in units of its matrix's root mean square
-- note: Prunable weights, all counted. Left: the share below the threshold, %. Right: that share over a normal distribution's; above 1, more weights are small. Blocks are taken in thirds by depth.

WITH dense AS (
    SELECT t.*, max(layer) OVER (PARTITION BY model, side) + 1 AS depth
    FROM tensors t
    WHERE method = 'dense' AND weights <> 'random' AND prunable AND layer IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, name ORDER BY manifest) = 1
), placed AS (
    SELECT *, concat(if(family = 'encoder-decoder', side || ', ', ''), ['first', 'middle', 'last'][1 + (3 * layer) // depth], ' third') AS series
    FROM dense
), counted AS (
    SELECT model, weights, series, pow(2, edges[bin]) AS threshold, sum(zeros + list_sum(histogram[:bin])) / sum(count) AS share
    FROM (SELECT *, unnest(range(1, len(edges) + 1)) AS bin FROM placed)
    GROUP BY ALL
), compared AS (
    SELECT *, normal_share(threshold) AS normal FROM counted
    UNION ALL BY NAME
    SELECT DISTINCT model, weights, 'normal' AS series, threshold, normal_share(threshold) AS share, normal_share(threshold) AS normal FROM counted
)
SELECT threshold, unnest([100 * share, if(threshold <= 1, share / normal, NULL)]) AS value, series, series = 'normal' AS bound,
       model_label(model, weights) AS model, concat(model_label(model, weights), chr(10), unnest(['share below, %', 'over a normal distribution''s'])) AS facet,
       (SELECT format('Weights below {:.2g} of the rms are {:.1f} to {:.1f} times as many as in a normal distribution', threshold, min(share / normal), max(share / normal))
        FROM compared WHERE series <> 'normal' GROUP BY threshold ORDER BY abs(ln(threshold / 0.1)) LIMIT 1) AS finding
FROM compared
WHERE threshold BETWEEN 0.015 AND 6 -- below, too few weights for a ratio
ORDER BY model, facet LIKE '%normal%', bound, list_position(['first third', 'middle third', 'last third'], series), series, threshold;
