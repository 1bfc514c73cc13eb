-- title: Near-zero weights after methods that spread zeros unevenly, block by block
-- finding: finding
-- about: which blocks and kinds of module a method empties: share of |w| below a tenth of the rms
-- kind: heatmap
-- x: layer
-- y: kind
-- value: near_share
-- facet: facet
-- columns: 2
-- yscale: percent
-- xlabel: transformer block
-- ylabel: near zero, %
-- note: Exact zeros are included. The threshold is a tenth of the root mean square that the matrix has in that variant. Each method is shown at the sparsity nearest to 50%. Methods that take the same share of every matrix are left out.

WITH placed AS (
    SELECT s.*, line, abs(sparsity - 0.5) AS off, concat(if(family = 'encoder-decoder', side || ' ', ''), kind) AS row_name
    FROM structure s
    JOIN ways USING (variant_id)
    WHERE weights <> 'random' AND scope = 'layer and kind' AND scale = 'relative' AND threshold = 0.1
    QUALIFY off = min(off) OVER (PARTITION BY model, weights, line)
), uneven AS (
    -- Matrices that differ by two points: more than rounding.
    SELECT variant_id, model
    FROM placed
    WHERE method <> 'dense' AND method NOT LIKE '%+%' AND variant_id NOT IN (FROM _more_than_zeros)
    GROUP BY ALL
    HAVING max(zero_share) - min(zero_share) > 0.02
), told AS (
    SELECT model, any_value(line) AS line, any_value(sparsity) AS sparsity, min(near_share) AS least, max(near_share) AS most
    FROM placed
    JOIN uneven USING (variant_id, model)
    GROUP BY variant_id, model
    ORDER BY most - least DESC, model, line
    LIMIT 1
)
SELECT DISTINCT ON (facet, row_name, layer) layer, row_name AS kind, near_share, model_label(model, weights) AS model,
       concat(model_label(model, weights), chr(10), line, ', ', percent_label(sparsity), '%') AS facet,
       (SELECT format('One threshold for a whole model empties some of its matrices: {}, at {}% zeros, leaves {:.0f} to {:.0f}% near zero', told.model, percent_label(told.sparsity), 100 * least, 100 * most) FROM told) AS finding
FROM placed
WHERE variant_id IN (SELECT variant_id FROM uneven)
ORDER BY placed.model, method <> 'dense', facet, side DESC,
         list_position(['qkv', 'q', 'k', 'v', 'o', 'cross_q', 'cross_k', 'cross_v', 'cross_o', 'gate', 'gate_up', 'up', 'down'],
             placed.kind), layer, variant_id;
