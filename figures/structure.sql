-- title: Share of near-zero weights (|w| below a tenth of their matrix's rms) in the dense models
-- finding: finding
-- about: where the small weights of the untouched models are
-- kind: heatmap
-- x: layer
-- y: kind
-- value: near_share
-- facet: facet
-- columns: 2
-- yscale: percent
-- footnote: left_out
-- xlabel: transformer block
-- ylabel: near zero, %
-- note: Near zero: |w| below a tenth of its matrix's rms. Of normally distributed weights 8.0% are; more means a heavier tail.

WITH matrices AS (
    SELECT model, weights, s.family, s.side, s.kind, s.layer, arg_min(near_share, (variant_id, manifest)) AS near_share
    FROM structure s
    WHERE method = 'dense' AND weights <> 'random' AND scope = 'layer and kind' AND scale = 'relative' AND threshold = 0.1
    GROUP BY ALL
), ranked AS (
    SELECT *, dense_rank() OVER (ORDER BY bytes DESC NULLS LAST, model) <= 4 AS shown, kind NOT IN ('gate', 'gate_up', 'up', 'down') AS attention
    FROM matrices
    LEFT JOIN (SELECT model, weights, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense'
        GROUP BY ALL) USING (model, weights)
)
SELECT layer, if(family = 'encoder-decoder', side || ' ', '') || kind AS kind, near_share, model_label(model, weights) AS facet,
       (SELECT format('Attention matrices have {}% of their weights near zero, MLP matrices {}%',
           range_label('{:.0f}', 100 * min(near_share) FILTER (attention), 100 * max(near_share) FILTER (attention)),
                      range_label('{:.0f}', 100 * min(near_share) FILTER (NOT attention), 100 * max(near_share) FILTER (NOT attention)))
        FROM ranked WHERE shown HAVING count(DISTINCT attention) = 2) AS finding,
       (SELECT format('Not drawn: {}, {}% in every matrix.', string_agg(DISTINCT model, ', ' ORDER BY model),
           range_label('{:.0f}', 100 * min(near_share), 100 * max(near_share)))
        FROM ranked WHERE NOT shown HAVING count(*) > 0) AS left_out
FROM ranked
WHERE shown
ORDER BY facet, side DESC, list_position(['qkv', 'q', 'k', 'v', 'o', 'cross_q', 'cross_k', 'cross_v', 'cross_o', 'gate', 'gate_up',
                                          'up', 'down'], ranked.kind), layer;
