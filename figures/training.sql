-- title: Loss while a whole model is trained
-- finding: finding
-- about: how fast training after pruning regains what it can, and what then passes the quality gate
-- kind: line
-- x: thousands
-- y: share
-- series: zeros
-- place: place
-- bound: bound
-- facet: model
-- columns: 3
-- reference: untrained = before
-- xscale: log
-- xshare: yes
-- yshare: yes
-- yscale: percent
-- ymin: -0.05
-- xlabel: thousands of tokens trained on
-- ylabel: held-out loss, % of that before
-- note: Whole models trained after pruning; zeros stay zero. Held out: samples that are not trained on. The loss is what the training minimises: the distance from the dense model's outputs where it distils. Of several trainings at one sparsity the longest.
-- boundnote: Grey: trained, but still below the quality gate (1.1 times dense's perplexity and 95% of its skill), or not scored.

WITH asked AS (
    SELECT t.*, first_value(held_out) OVER one AS before, max(tokens) OVER (PARTITION BY variant_id) AS whole
    FROM training_curves t
    WHERE recipe LIKE '%then%' AND sparsity > 0
    WINDOW one AS (PARTITION BY t.manifest, variant_id ORDER BY t.step)
), longest AS (
    SELECT *, coalesce(passes, false) AS passing
    FROM (FROM asked QUALIFY variant_id = first_value(variant_id) OVER (PARTITION BY model, sparsity ORDER BY whole DESC, variant_id))
    LEFT JOIN (SELECT variant_id, passes FROM gate) USING (variant_id)
), passed AS (
    SELECT string_agg(format('{} ({}% zeros)', model, sparsities), ', ' ORDER BY model) FILTER (passing) AS words, bool_or(NOT passing) AS failing
    FROM (SELECT model, passing, string_agg(DISTINCT percent_label(sparsity), ' and ' ORDER BY percent_label(sparsity)) AS sparsities FROM longest GROUP BY ALL)
)
SELECT model, tokens / 1000 AS thousands, held_out / before AS share, percent_label(sparsity) || if(passing, '%: passes', '% zeros') AS zeros, NOT passing AS bound,
       dense_rank() OVER (PARTITION BY passing ORDER BY sparsity) + 7 AS place, 1::DOUBLE AS untrained,
       (SELECT concat('Pruned and trained, ', coalesce(if(failing, 'only ', '') || words, 'no model'), ' passes the quality gate')
        FROM passed) AS finding
FROM longest
WHERE held_out IS NOT NULL AND tokens > 0
ORDER BY model, bound, sparsity, tokens;
