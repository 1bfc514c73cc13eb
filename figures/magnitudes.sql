-- title: How many weights are small: the share of |w| below a threshold, over a normal distribution's
-- finding: finding
-- about: the distribution of weight magnitudes by model, beside a normal distribution's
-- kind: curve
-- x: threshold
-- y: times
-- series: series
-- reference: normal = normal
-- xscale: log
-- xlabel: |w|, in units of its matrix's root mean square
-- ylabel: share of smaller weights / a normal distribution's
-- note: Prunable weights of the dense models, all counted. At 1 as many are smaller as of normally distributed weights; to the right all lines fall to it.

WITH dense AS (
    SELECT *
    FROM tensors
    WHERE method = 'dense' AND weights <> 'random' AND prunable AND layer IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, name ORDER BY manifest) = 1
), counted AS (
    SELECT model_label(model, weights) AS series, pow(2, edges[bin]) AS threshold, sum(zeros + list_sum(histogram[:bin])) / sum(count) AS share
    FROM (SELECT *, unnest(range(1, len(edges) + 1)) AS bin FROM dense)
    GROUP BY ALL
)
SELECT threshold, share / normal_share(threshold) AS times, series, 1 AS normal,
       (SELECT format('Trained weights are about as small as noise: {}% lie below a tenth of the rms, of normal ones {:.1f}%',
                      range_label('{:.1f}', 100 * min(near_share), 100 * max(near_share)), 100 * normal_share(0.1))
        FROM structure WHERE method = 'dense' AND weights <> 'random' AND scope = 'prunable' AND scale = 'relative' AND threshold = 0.1 HAVING count(*) > 0) AS finding
FROM counted
WHERE threshold BETWEEN 0.015 AND 0.6 AND share > 0
ORDER BY series, threshold;
