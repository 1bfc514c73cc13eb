-- title: How large the weights of the dense models are, block by block
-- about: how large each kind of module's weights are in each block, beside the whole model's
-- finding: finding
-- kind: heatmap
-- x: layer
-- y: kind
-- value: rms
-- middle: 1 2.5
-- yscale: percent
-- facet: facet
-- columns: 2
-- footnote: left_out
-- xlabel: transformer block
-- ylabel: root mean square, % of the model's
-- note: The root mean square of one kind of module in one block, divided by that of all prunable weights of the model. One threshold for the whole model removes most weights where this is small; a threshold for each matrix ignores it.

WITH each AS (
    SELECT model, weights, family, side, kind, layer, sum(sum(count)) OVER whole AS weights_in_all,
           sqrt(sum(rms ** 2 * count) / sum(count)) / sqrt(sum(sum(rms ** 2 * count)) OVER whole / sum(sum(count)) OVER whole) AS rms
    FROM (SELECT DISTINCT ON (model, weights, name) * FROM tensors WHERE method = 'dense' AND weights <> 'random' AND prunable
          ORDER BY model, weights, name, variant_id, manifest)
    GROUP BY model, weights, family, side, kind, layer
    WINDOW whole AS (PARTITION BY model, weights)
), spread AS (
    SELECT model, weights, max(rms) / min(rms) FILTER (rms > 0) AS ratio,
           row_number() OVER (ORDER BY any_value(weights_in_all) DESC, model) <= 4 AS shown
    FROM each
    GROUP BY model, weights
)
SELECT layer, concat(if(family = 'encoder-decoder', side || ' ', ''), kind) AS kind, round(rms, 2) AS rms, model_label(model, weights) AS facet,
       (SELECT format('Some modules have far smaller weights than others: their rms differs by a factor of {}{:.1f} in {}',
           if(count(*) = 1, '', format('{:.1f} in {} to ', min(ratio), arg_min(model, ratio))), max(ratio), arg_max(model, ratio))
               FROM spread) AS finding,
       (SELECT 'Not drawn: ' || string_agg(format('{} (a factor of {:.1f})', model, ratio), ', ' ORDER BY model) || '.'
           FROM spread WHERE NOT shown) AS left_out
FROM each
JOIN spread USING (model, weights)
WHERE shown
ORDER BY facet, side DESC,
    list_position(['qkv', 'q', 'k', 'v', 'o', 'cross_q', 'cross_k', 'cross_v', 'cross_o', 'gate', 'gate_up', 'up', 'down'],
        each.kind), layer;
