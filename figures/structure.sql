-- title: Share of near-zero weights (|w| below a tenth of their matrix's rms) in the dense models
-- about: where the small weights of the untouched models are
-- kind: heatmap
-- x: layer
-- y: kind
-- value: near_share
-- facet: facet
-- yscale: percent
-- xlabel: layer
-- ylabel: near zero, %
-- note: Weights from a normal distribution would have 8.0% below this threshold; more means a heavier tail.

SELECT s.layer, if(s.family = 'encoder-decoder', s.side || ' ', '') || s.kind AS kind, arg_min(near_share, (variant_id, manifest)) AS near_share,
       model_label(model, weights) AS facet
FROM structure s
WHERE method = 'dense' AND weights <> 'random' AND scope = 'layer and kind' AND scale = 'relative' AND threshold = 0.1
GROUP BY facet, s.family, s.side, s.kind, s.layer
ORDER BY facet, s.side DESC, list_position(['qkv', 'q', 'k', 'v', 'o', 'cross_q', 'cross_k', 'cross_v', 'cross_o', 'gate', 'gate_up',
                                            'up', 'down'], s.kind), s.layer;
