-- title: Share of near-zero weights (|w| below a tenth of their matrix's rms) in the dense models
-- finding: finding
-- about: where the small weights of the untouched models are
-- kind: heatmap
-- x: layer
-- y: kind
-- value: near_share
-- facet: facet
-- yscale: percent
-- xlabel: layer
-- ylabel: near zero, %
-- note: Near zero: |w| below a tenth of its matrix's rms; of a normal distribution 8.0%, more means a heavier tail. Of more than four models the largest.

WITH matrices AS (
    SELECT model, weights, s.family, s.side, s.kind, s.layer, arg_min(near_share, (variant_id, manifest)) AS near_share
    FROM structure s
    WHERE method = 'dense' AND weights <> 'random' AND scope = 'layer and kind' AND scale = 'relative' AND threshold = 0.1
    GROUP BY ALL
), shown AS (
    FROM matrices
    LEFT JOIN (SELECT model, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY model) USING (model)
    QUALIFY dense_rank() OVER (ORDER BY bytes DESC NULLS LAST, model) <= 4
)
SELECT layer, if(family = 'encoder-decoder', side || ' ', '') || kind AS kind, near_share, model_label(model, weights) AS facet,
       (SELECT format('{}% of the weights of a q, k or v are near zero, {}% of a matrix of the MLP', range_label('{:.0f}', 100 * min(near_share) FILTER (within), 100 * max(near_share) FILTER (within)),
                      range_label('{:.0f}', 100 * min(near_share) FILTER (NOT within), 100 * max(near_share) FILTER (NOT within)))
        FROM (SELECT near_share, kind IN ('qkv', 'q', 'k', 'v') AS within FROM shown WHERE kind IN ('qkv', 'q', 'k', 'v', 'gate', 'gate_up', 'up', 'down')) HAVING count(DISTINCT within) = 2) AS finding
FROM shown
ORDER BY facet, side DESC, list_position(['qkv', 'q', 'k', 'v', 'o', 'cross_q', 'cross_k', 'cross_v', 'cross_o', 'gate', 'gate_up',
                                          'up', 'down'], shown.kind), layer;
