-- title: Loss while a whole model is trained
-- finding: finding
-- about: how fast training after pruning regains what it can
-- kind: line
-- x: thousands
-- y: share
-- series: zeros
-- place: place
-- facet: model
-- columns: 3
-- yshare: yes
-- yscale: percent
-- ymin: 0
-- xlabel: thousands of tokens trained on
-- ylabel: held-out loss, % of that before
-- note: Whole models trained after pruning; zeros stay zero. Held out: samples that are not trained on. The loss is what the training minimises: the distance from the dense model's outputs where it distils. Of several trainings at one sparsity the longest.

WITH asked AS (
    SELECT t.*, first_value(held_out) OVER one AS before, max(tokens) OVER (PARTITION BY variant_id) AS whole
    FROM training_curves t
    WHERE recipe LIKE '%then%' AND sparsity > 0
    WINDOW one AS (PARTITION BY t.manifest, variant_id ORDER BY t.step)
), longest AS (
    FROM asked QUALIFY variant_id = first_value(variant_id) OVER (PARTITION BY model, sparsity ORDER BY whole DESC, variant_id)
), falls AS (
    -- The share of the whole fall by an eighth of the tokens.
    SELECT variant_id, (any_value(before) - arg_min(held_out, abs(tokens / whole - 0.125))) / nullif(any_value(before) - arg_max(held_out, tokens), 0) AS early
    FROM longest
    GROUP BY variant_id
)
SELECT concat(model, chr(10), passing) AS model, tokens / 1000 AS thousands, held_out / before AS share, percent_label(sparsity) || '% zeros' AS zeros,
       (dense_rank() OVER (ORDER BY sparsity) - 1) AS place,
       (SELECT format('The first eighth of training brings {}% of its gain', range_label('{:.0f}', 100 * min(early), 100 * max(early))) FROM falls WHERE early IS NOT NULL HAVING min(early) > 0) AS finding
FROM longest
JOIN (SELECT model, 'pass the gate: ' || coalesce(string_agg(DISTINCT percent_label(sparsity) || '%', ', ' ORDER BY percent_label(sparsity) || '%') FILTER (passes), 'none') AS passing
      FROM longest LEFT JOIN (SELECT variant_id, passes FROM gate) USING (variant_id) GROUP BY model) USING (model)
WHERE held_out IS NOT NULL
ORDER BY 1, sparsity, tokens;
