-- title: What removing about a fifth of the parameters costs and saves, by what is removed
-- about: quality, bytes and time with a fifth of the parameters removed: zeros, neurons, heads, blocks, tokens
-- finding: finding
-- kind: forest
-- x: over_dense
-- xlow: low
-- xhigh: high
-- y: what
-- facet: panel
-- xscale: log
-- reference: one = dense
-- xlabel: over the dense model's
-- columns: 2
-- note: The model with most kinds, and of its tasks and times those with most. One variant of each kind, the same in all panels: of those nearest to 20% of all parameters removed (beside the name; zeros count as removed), the one in most panels, then the best. Perplexity and bits a byte: lower is better. A smaller vocabulary reads a text as other tokens, so that only bits a byte compare; that panel has no intervals. A task: retained, (score - chance) / (dense - chance). File: the smaller of the dense and the packed one. Time: lower is better. Whiskers: 95% intervals.

WITH kinds AS (
    SELECT variant_id, count(DISTINCT position) AS steps,
           string_agg(DISTINCT CASE WHEN step = 'trim' THEN 'vocabulary' WHEN step = 'shrink' AND field = 'blocks' THEN 'blocks'
                                    WHEN step = 'shrink' AND field = 'of' THEN if(value = 'both', 'neurons and heads', value)
                                    WHEN step = 'prune' AND field = 'pattern' THEN if(value = 'unstructured', 'zeros',
                                        'zeros ' || value) END, ', then ') AS what, bool_or(name = 'random') AS random
    FROM steps
    GROUP BY variant_id
), smaller AS (
    -- Models with a smaller variant: for the others the figures of sparsity suffice.
    SELECT DISTINCT model FROM variants WHERE parameters_removed > 0 AND recipe <> 'dense'
), candidates AS (
    SELECT v.variant_id, v.model, v.weights, k.what || if(k.random, ', random', '') AS kind, k.random,
           1 - (1 - coalesce(total_zeros / v.parameters, 0)) * (1 - parameters_removed) AS gone
    FROM variants v
    JOIN kinds k USING (variant_id)
    JOIN smaller USING (model)
    -- Random zeros collapse any model.
    WHERE k.steps = 1 AND k.what IS NOT NULL AND v.weights <> 'random' AND NOT (k.random AND k.what LIKE 'zeros%')
), near AS (
    SELECT DISTINCT ON (variant_id) *
    FROM candidates
    QUALIFY round(20 * abs(gone - 0.2)) = min(round(20 * abs(gone - 0.2))) OVER (PARTITION BY model, kind) AND gone BETWEEN 0.05 AND 0.4
), bits AS (
    SELECT s.variant_id, s.bits_per_byte / d.bits_per_byte AS over_dense
    FROM scores s
    JOIN scores d ON d.method = 'dense' AND s.method <> 'dense' AND d.manifest = s.manifest AND d.model = s.model AND d.task = s.task
                 AND d.dtype = s.dtype AND _same(d.settings) = _same(s.settings)
    WHERE s.bits_per_byte IS NOT NULL AND NOT s.collapsed
), measured AS (
    SELECT variant_id, 1 AS place, task || if(ratio IS NULL, ': retained', '') AS panel, coalesce(ratio, retained) AS over_dense,
           coalesce(ratio_low, retained_low) AS low,
           coalesce(ratio_high, retained_high) AS high, if(ratio IS NULL, -retained, ratio) AS badness
    FROM vs_dense
    WHERE verdict NOT IN ('invalid', 'collapsed')
    UNION ALL BY NAME
    SELECT variant_id, 2 AS place, 'bits a byte' AS panel, over_dense, over_dense AS badness
    FROM bits
    UNION ALL BY NAME
    SELECT variant_id, 3 AS place, 'file' AS panel, share AS over_dense, share AS badness
    FROM sizes
    WHERE format IN ('dense', 'packed') AND method <> 'dense'
    UNION ALL BY NAME
    -- Of several measurements, the one with the narrowest interval.
    SELECT variant_id, 4 AS place, concat('time: ', phase, ', ', engine) AS panel, 1 / speedup AS over_dense,
           1 / speedup_high AS low, 1 / speedup_low AS high, high - low AS badness
    FROM latency
    WHERE phase NOT IN ('load', 'generate') AND method <> 'dense' AND speedup IS NOT NULL
), points AS (
    SELECT *
    FROM near
    JOIN measured USING (variant_id)
    -- The axis is logarithmic: it cannot show a variant that retains nothing.
    WHERE over_dense > 0
    QUALIFY row_number() OVER (PARTITION BY variant_id, panel ORDER BY badness) = 1
), panels AS (
    -- Panels that compare kinds: one of the quality, of bits a byte, of the file and of time, of the model with most kinds.
    SELECT model, panel
    FROM (SELECT *, sum(kinds) OVER (PARTITION BY model) AS total
          FROM (SELECT model, panel, place, count(DISTINCT kind) AS kinds FROM points GROUP BY ALL
              HAVING count(DISTINCT kind) FILTER (NOT starts_with(kind, 'zeros')) > 1)
          QUALIFY min(place) OVER (PARTITION BY model) = 1 AND row_number() OVER (PARTITION BY model, place ORDER BY kinds DESC, panel) = 1)
    QUALIFY model = first_value(model) OVER (ORDER BY total DESC, model)
), chosen AS (
    SELECT model, kind, arg_min(variant_id, (-panels, badness, variant_id)) AS variant_id
    FROM (SELECT model, kind, variant_id, count(*) AS panels, coalesce(avg(badness) FILTER (place = 1), 1e9) AS badness
          FROM points JOIN panels USING (model, panel) GROUP BY ALL)
    GROUP BY ALL
), told AS (
    -- Of the model with most kinds: the smaller shapes that cost least and most, beside zeros.
    SELECT model, arg_min(kind, over_dense) FILTER (shrunk) AS least, min(over_dense) FILTER (shrunk) AS little,
           arg_max(kind, over_dense) FILTER (shrunk) AS most,
           max(over_dense) FILTER (shrunk) AS much, min(over_dense) FILTER (kind = 'zeros') AS zeros, count(*) FILTER (shrunk) AS kinds,
           range_label('{:.0f}', 100 * min(gone) FILTER (shrunk), 100 * max(gone) FILTER (shrunk)) AS share
    FROM (SELECT p.*, NOT p.random AND NOT starts_with(p.kind, 'zeros') AS shrunk FROM points p
        JOIN chosen USING (model, kind, variant_id) WHERE panel = 'perplexity')
    GROUP BY model
    HAVING kinds > 1
    ORDER BY kinds DESC, model
    LIMIT 1
)
SELECT model_label(model, weights) AS model, concat(model_label(model, weights), chr(10), panel) AS panel,
       format('{}, {:.0f}%', kind, 100 * gone) AS what,
       over_dense, if(low > 0, low, NULL) AS low, high, 1::DOUBLE AS one,
       (SELECT format('With {}% of {} gone, {} cost least ({:.1f} times the dense perplexity) and {} most ({:.1f}){}',
               share, t.model, least, little, most, much, coalesce(format('; as zeros {:.1f}', zeros), '')) FROM told t) AS finding
FROM points p
JOIN panels USING (model, panel)
JOIN chosen USING (model, kind, variant_id)
ORDER BY p.model, p.place, p.panel, random,
    list_position(['zeros', 'zeros 2:4', 'neurons', 'heads', 'neurons and heads', 'blocks', 'vocabulary'],
        replace(kind, ', random', '')), kind;
