-- title: How many weights are small: cumulative share of |w| below a threshold, dense models
-- finding: finding
-- about: the distribution of weight magnitudes by model, beside a normal distribution's
-- kind: curve
-- x: threshold
-- y: share
-- series: series
-- bound: bound
-- xscale: log
-- yscale: log
-- xlabel: |w|, in units of its matrix's root mean square
-- ylabel: weights below, %
-- note: Prunable weights of the dense models, all counted.
-- boundnote: Grey: a normal distribution.

WITH dense AS (
    SELECT *
    FROM tensors
    WHERE method = 'dense' AND weights <> 'random' AND prunable AND layer IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, name ORDER BY manifest) = 1
), counted AS (
    SELECT model_label(model, weights) AS series, pow(2, edges[bin]) AS threshold, sum(zeros + list_sum(histogram[:bin])) / sum(count) AS share
    FROM (SELECT *, unnest(range(1, len(edges) + 1)) AS bin FROM dense)
    GROUP BY ALL
), compared AS (
    SELECT *, false AS bound FROM counted
    UNION ALL BY NAME
    SELECT DISTINCT 'normal' AS series, threshold, normal_share(threshold) AS share, true AS bound FROM counted
)
SELECT threshold, 100 * share AS share, series, bound,
       (SELECT format('Trained weights are about as small as noise: {}% lie below a tenth of the rms, of normal ones {:.1f}%',
                      range_label('{:.1f}', 100 * min(near_share), 100 * max(near_share)), 100 * normal_share(0.1))
        FROM structure WHERE method = 'dense' AND weights <> 'random' AND scope = 'prunable' AND scale = 'relative' AND threshold = 0.1 HAVING count(*) > 0) AS finding
FROM compared
WHERE threshold BETWEEN 0.015 AND 4 AND share > 0
ORDER BY bound, series, threshold;
