-- title: How many weights are small: the share of |w| below a threshold, beside a normal distribution's
-- finding: finding
-- about: the distribution of weight magnitudes by model, beside a normal distribution's
-- kind: curve
-- x: threshold
-- y: share
-- series: series
-- bound: bound
-- yscale: percent
-- xlabel: threshold on |w|, in units of its matrix's root mean square
-- ymin: 0
-- ylabel: weights below the threshold, %
-- note: Prunable weights of the dense models, all counted.
-- boundnote: Grey: normally distributed weights, and the tenth of the rms below which a weight is called near zero.

WITH dense AS (
    SELECT *
    FROM tensors
    WHERE method = 'dense' AND weights <> 'random' AND prunable AND layer IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, name ORDER BY manifest) = 1
), counted AS (
    SELECT model_label(model, weights) AS series, pow(2, edges[bin]) AS threshold, sum(zeros + list_sum(histogram[:bin])) / sum(count) AS share, false AS bound
    FROM (SELECT *, unnest(range(1, len(edges) + 1)) AS bin FROM dense)
    GROUP BY ALL
    HAVING threshold BETWEEN 0.015 AND 0.6
), near AS (
    SELECT range_label('{:.1f}', 100 * min(near_share), 100 * max(near_share)) || '%' AS shares, max(near_share) AS most
    FROM structure
    WHERE method = 'dense' AND weights <> 'random' AND scope = 'prunable' AND scale = 'relative' AND threshold = 0.1
), drawn AS (
    FROM counted
    UNION ALL BY NAME
    SELECT DISTINCT 'normal' AS series, threshold, normal_share(threshold) AS share, true AS bound FROM counted
    UNION ALL BY NAME
    -- A mark across the lines.
    SELECT 'near zero: ' || shares AS series, 0.1 AS threshold, unnest([0, 0.3]) AS share, true AS bound FROM near
)
SELECT *, (SELECT format('{}: {} lie below a tenth of the rms, of noise {:.1f}%', if(most < 2 * normal_share(0.1), 'Trained weights are spread almost like noise', 'Small weights are common'), shares, 100 * normal_share(0.1)) FROM near) AS finding
FROM drawn
WHERE series IS NOT NULL AND EXISTS (FROM counted)
ORDER BY bound, series, threshold, share;
