-- title: What a share of the parameters costs and saves, by what is removed
-- about: zeros, neurons, heads, blocks, vocabulary: quality, bytes and time over the share of parameters gone
-- kind: scatter
-- x: gone
-- y: over_dense
-- low: low
-- high: high
-- series: series
-- place: place
-- facet: panel
-- row: model
-- bound: bound
-- yscale: log
-- reference: one = dense
-- xlabel: parameters that are gone, or zero, % of the dense model's
-- ylabel: over the dense model's
-- note: A point is a variant; zeros count as gone. Perplexity: lower is better; collapsed models are left out. A task: what is retained, (score - chance) / (dense - chance); models that retain nothing are left out. File: the smaller of the dense and the packed one. Time: lower is better. Whiskers: 95% intervals.
-- boundnote: Grey: chosen at random.

WITH kinds AS (
    SELECT variant_id, count(DISTINCT position) AS steps,
           string_agg(DISTINCT CASE WHEN step = 'trim' THEN 'vocabulary' WHEN step = 'shrink' AND field = 'blocks' THEN 'blocks'
                                    WHEN step = 'shrink' AND field = 'of' THEN if(value = 'both', 'neurons and heads', value)
                                    WHEN step = 'prune' AND field = 'pattern' THEN if(value = 'unstructured', 'zeros', 'zeros ' || value) END, ', then ') AS what, bool_or(name = 'random') AS random
    FROM steps
    GROUP BY variant_id
), smaller AS (
    -- Models of which something smaller was made: for the others the figure of sparsity says all.
    SELECT DISTINCT model FROM variants WHERE parameters_removed > 0 AND recipe <> 'dense'
), gone AS (
    SELECT v.variant_id, v.model, model_label(v.model, v.weights) AS label, v.recipe, k.what, k.random,
           1 - (1 - coalesce(total_zeros / v.parameters, 0)) * (1 - parameters_removed) AS gone
    FROM variants v
    JOIN kinds k USING (variant_id)
    JOIN smaller USING (model)
    WHERE k.steps = 1 AND k.what IS NOT NULL AND v.weights <> 'random'
), quality AS (
    SELECT variant_id, task || if(ratio IS NULL, ': retained', '') AS panel, coalesce(ratio, retained) AS over_dense, coalesce(ratio_low, retained_low) AS low,
           coalesce(ratio_high, retained_high) AS high
    FROM vs_dense
    WHERE verdict NOT IN ('invalid', 'collapsed')
), bytes AS (
    SELECT z.variant_id, 'file' AS panel, min(z.share) AS over_dense, NULL::DOUBLE AS low, NULL::DOUBLE AS high
    FROM sizes z
    WHERE z.format IN ('dense', 'packed') AND z.method <> 'dense'
    GROUP BY ALL
), times AS (
    SELECT variant_id, concat('time: ', phase, ', ', engine) AS panel, 1 / speedup AS over_dense, 1 / speedup_high AS low, 1 / speedup_low AS high
    FROM latency
    WHERE phase NOT IN ('load', 'generate') AND method <> 'dense' AND speedup IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY variant_id, phase, engine ORDER BY ranks, workload, started_at DESC) = 1
)
SELECT label AS model, concat(label, chr(10), panel) AS panel, 100 * gone AS gone, over_dense, if(low > 0, low, NULL) AS low, high, what || if(random, ', at random', '') AS series, 1.0 AS one, random AS bound,
       CASE what WHEN 'zeros' THEN 0 WHEN 'zeros 2:4' THEN 1 WHEN 'neurons' THEN 2 WHEN 'heads' THEN 3 WHEN 'neurons and heads' THEN 4 WHEN 'blocks' THEN 5 WHEN 'vocabulary' THEN 6 ELSE 7 END AS place
FROM gone
JOIN (FROM quality UNION ALL BY NAME FROM bytes UNION ALL BY NAME FROM times) USING (variant_id)
-- The axis is logarithmic: what retains nothing has no place on it.
WHERE over_dense > 0
ORDER BY model, panel, place, gone, over_dense;
