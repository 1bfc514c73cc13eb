-- title: How many weights are small: the share of |w| below a threshold, beside a normal distribution's
-- finding: finding
-- about: the distribution of weight magnitudes by model, beside a normal distribution's
-- kind: curve
-- x: threshold
-- y: times
-- series: series
-- bound: bound
-- reference: normal = normal
-- xscale: log
-- xlabel: threshold on |w|, in units of its matrix's root mean square
-- ylabel: weights below it, times as many as normal
-- note: Prunable weights of the dense models, all counted, over the share of a normal distribution below the same threshold. Weights out of a 4-bit file lie on a grid, which bends their line.
-- boundnote: Grey: the tenth of the rms below which a weight is called near zero.

WITH dense AS (
    SELECT *
    FROM tensors
    WHERE method = 'dense' AND weights <> 'random' AND prunable AND layer IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, weights, name ORDER BY manifest) = 1
), counted AS (
    SELECT model_label(model, weights) AS series, pow(2, edges[bin]) AS threshold, sum(zeros + list_sum(histogram[:bin])) / sum(count) AS share
    FROM (SELECT *, unnest(range(1, len(edges) + 1)) AS bin FROM dense)
    GROUP BY ALL
    HAVING threshold BETWEEN 0.015 AND 0.6
), compared AS (
    SELECT series, threshold, share / normal_share(threshold) AS times, false AS bound FROM counted
), near AS (
    SELECT range_label('{:.1f}', 100 * min(near_share), 100 * max(near_share)) || '%' AS shares, max(near_share) AS most
    FROM structure
    WHERE method = 'dense' AND weights <> 'random' AND scope = 'prunable' AND scale = 'relative' AND threshold = 0.1
), drawn AS (
    FROM compared
    UNION ALL BY NAME
    -- A mark across the lines.
    SELECT 'near zero: ' || shares AS series, 0.1 AS threshold, unnest([ends.low, ends.high]) AS times, true AS bound
    FROM near, (SELECT min(least(times, 1)) AS low, max(times) AS high FROM compared) ends
)
SELECT *, 1::DOUBLE AS normal,
       (SELECT format('{}: {} lie below a tenth of the rms, of noise {:.1f}%',
           if(most < 2 * normal_share(0.1), 'Trained weights are spread almost like noise', 'Small weights are common'), shares,
           100 * normal_share(0.1)) FROM near) AS finding
FROM drawn
WHERE series IS NOT NULL AND EXISTS (FROM counted)
ORDER BY bound, series, threshold, times;
