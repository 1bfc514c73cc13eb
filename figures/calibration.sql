-- title: Perplexity by calibration text and inputs
-- finding: finding
-- about: how much it matters which text a method reads, and whether its inputs come from the pruned or the dense model
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: shown
-- facet: facet
-- reference: dense = dense
-- columns: 2
-- yscale: log
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: perplexity (lower is better)
-- note: Whiskers: 95% intervals, by Student's t over windows. Inputs come from the variant's own pruned blocks unless a label says dense inputs. The results' section on calibration names the texts.

WITH placed AS (
    SELECT sparsity, score, low, high, dense, concat('text ', text_number, inputs) AS shown,
           regexp_replace(panel, '\n.*', '') || chr(10) || w.line AS facet, panel
    FROM curves c
    JOIN (SELECT variant_id, text_number, inputs, replace(line, inputs, '') AS line FROM ways) w USING (variant_id)
    WHERE scale = 'perplexity' AND method <> 'dense' AND text_number IS NOT NULL
    QUALIFY count(DISTINCT concat(text_number, inputs)) OVER (PARTITION BY panel, w.line, sparsity) > 1
), sampled AS (
    -- One sample of text for a panel: that of most points.
    FROM (SELECT *, count(*) OVER (PARTITION BY facet, panel) AS points FROM placed)
    QUALIFY (points, panel) = max((points, panel)) OVER (PARTITION BY facet)
)
SELECT sparsity, score, low, high, dense, shown, facet,
       (SELECT format('At {}% zeros, the text and the inputs change the perplexity by up to a factor of {:.2g}',
           percent_label(sparsity), max(score) / min(score))
        FROM sampled WHERE score <= 10 * dense GROUP BY facet, sparsity ORDER BY max(score) / min(score) DESC LIMIT 1) AS finding
FROM sampled
ORDER BY facet, shown, sparsity;
