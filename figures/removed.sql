-- title: Quality against the share of the parameters that was removed
-- about: what removing neurons, heads or blocks costs, by their share of all parameters
-- finding: finding
-- kind: scatter
-- x: gone
-- y: over_dense
-- low: low
-- high: high
-- series: what
-- place: place
-- facet: panel
-- bound: random
-- text: text
-- yscale: log
-- reference: one = dense
-- xlabel: parameters removed, % of all
-- ylabel: perplexity, over the dense model's
-- note: Only measured points are drawn. Labels: the criterion of the best of each kind at each share (+ refit: by least squares). Variants of one step are shown, not chains. Collapsed models are left out, and so are smaller vocabularies, whose texts have other tokens. Whiskers: 95% intervals.
-- boundnote: Grey: chosen at random.

WITH kinds AS (
    SELECT variant_id, count(DISTINCT position) AS steps, any_value(name) AS criterion,
           bool_or(field = 'compensation' AND value = 'least_squares') AS refit,
           max(CASE WHEN field = 'blocks' THEN 'blocks' WHEN field = 'of' THEN if(value = 'both', 'neurons and heads', value) END) AS what
    FROM steps
    WHERE step = 'shrink'
    GROUP BY variant_id
), points AS (
    SELECT DISTINCT d.model, model_label(d.model, d.weights) || ', ' || d.task AS panel,
           round(100 * parameters_removed, 1) AS gone, ratio AS over_dense, ratio_low AS low, ratio_high AS high,
           k.what, k.criterion || if(k.refit, ' + refit', '') AS criterion, k.criterion = 'random' AS random
    FROM vs_dense d
    JOIN variants v USING (variant_id)
    JOIN kinds k USING (variant_id)
    WHERE k.what IS NOT NULL AND d.ratio IS NOT NULL AND verdict NOT IN ('invalid', 'collapsed') AND parameters_removed > 0
        AND d.weights <> 'random'
          AND NOT EXISTS (FROM steps s WHERE s.variant_id = d.variant_id AND s.step <> 'shrink') AND k.steps = 1
), shown AS (
    -- Panels that compare kinds.
    SELECT panel FROM points GROUP BY panel HAVING count(DISTINCT what) FILTER (NOT random) > 1
), told AS (
    -- The finding is about the share at which most kinds were measured, to 5 points.
    SELECT any_value(model) AS model, panel, 5 * round(gone / 5) AS near, arg_min(what, over_dense) AS least,
           min(over_dense) AS little, count(DISTINCT what) AS kinds,
           arg_max(what, best) AS most, max(best) AS much
    FROM (SELECT *, min(over_dense) OVER (PARTITION BY panel, what, 5 * round(gone / 5)) AS best FROM points WHERE NOT random)
    GROUP BY panel, near
    HAVING kinds > 1
    ORDER BY kinds DESC, near, panel
    LIMIT 1
)
SELECT panel, gone, over_dense, if(low > 0, low, NULL) AS low, high, if(random, what || ', random', what) AS what, random,
       list_position(['neurons', 'heads', 'neurons and heads', 'blocks', 'experts'], what) + 7 AS place, 1::DOUBLE AS one,
       if(random OR over_dense > min(over_dense) OVER (PARTITION BY panel, what, random, round(gone)), NULL, criterion) AS text,
       (SELECT format('With about {:.0f}% of {} removed, {} cost least ({:.1f} times the dense perplexity) and {} most ({:.1f})',
                      near, model, least, little, most, much) FROM told) AS finding
FROM points
JOIN shown USING (panel)
ORDER BY panel, random, place, gone, over_dense;
