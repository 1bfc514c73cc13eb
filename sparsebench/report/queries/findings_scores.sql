-- Per model, task and method: the largest sparsity up to which a loss of a point (2% of a perplexity) was ruled out at every
-- sparsity measured, the largest up to which none was detected and every score was above chance, the first at which one was
-- detected, the one from which on no score was above chance, and the one from which on the model has collapsed; per task, the one from
-- which on every method but random masks was at chance or collapsed. The best method of a task shows no loss up to the highest sparsity.
-- `most` marks the largest sample on which 90% zeros or more were scored, or the largest.
WITH compared AS (
    SELECT s.model, s.weights, s.dtype, s.task, s.metric, s.n, s.num_fewshot, s.method, s.granularity, s.sparsity,
           s.score, s.chance, s.at_chance, s.scale = 'perplexity' AS perplexity, s.higher_is_better, v.verdict, v.dense_score,
           (v.high - v.low) / 2 AS half_width, method_label(s.method, s.granularity, 'unstructured') || way AS label,
           s.collapsed, min(s.sparsity) FILTER (_lost(v.verdict) AND v.verdict <> 'at chance') OVER any_sample AS lost_at,
           min(s.sparsity) FILTER (_lost(v.verdict) OR s.at_chance) OVER any_sample AS ends_at,
           min(s.sparsity) FILTER (v.loses_less IS NOT true) OVER sweep AS unclear_at, s.subset,
           v.detectable, -_goodness(v.difference, s.higher_is_better) AS loss,
           coalesce(max(s.sparsity) FILTER (NOT s.at_chance) OVER sweep, -1) AS above_chance_to,
           coalesce(max(s.sparsity) FILTER (NOT s.collapsed) OVER sweep, -1) AS sound_to,
           -- Random masks are the baseline: their collapse says nothing about a method.
           NOT regexp_matches(s.method, '^random(\+|$)') AS knows,
           coalesce(max(s.sparsity) FILTER (NOT regexp_matches(s.method, '^random(\+|$)') AND NOT s.at_chance
               AND NOT s.collapsed) OVER one_task, -1) AS alive_to
    FROM scores s
    JOIN ways USING (variant_id)
    JOIN vs_dense v USING (manifest, record_id)
    WHERE s.weights <> 'random' AND s.pattern = 'unstructured' AND NOT s.dense_at_chance /* manifests */
          -- Zeros alone: fewer bits and smaller shapes are not sparsity.
          AND s.variant_id NOT IN (FROM _more_than_zeros)
    -- A loss that one sample shows counts for smaller samples too, which may be too small to show it.
    WINDOW any_sample AS (PARTITION BY s.model, s.weights, s.dtype, s.task, s.metric, s.num_fewshot, s.method, s.granularity, way),
           sweep AS (PARTITION BY s.model, s.weights, s.dtype, s.task, s.metric, s.n, s.subset, s.num_fewshot, s.method,
               s.granularity, way), one_task AS (PARTITION BY s.model, s.weights, s.dtype, s.task, s.metric, s.n, s.subset,
               s.num_fewshot)
    QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY manifest) = 1
), found AS (
    SELECT any_value(knows) AS knows, model, weights, dtype, task, metric, n, subset, num_fewshot, method, label, any_value(chance) AS chance,
           any_value(lost_at) AS lost_at, any_value(ends_at) AS ends_at,
           max(sparsity) FILTER (sparsity < coalesce(unclear_at, 2)) AS cleared_to, min(sparsity) AS smallest,
           max(sparsity) AS largest,
           max(sparsity) FILTER (sparsity < coalesce(ends_at, 2)) AS kept_to,
           arg_max(loss, sparsity) FILTER (sparsity < coalesce(ends_at, 2)) AS loss,
           arg_max(half_width, sparsity) FILTER (sparsity < coalesce(ends_at, 2)) AS half_width,
           arg_max(detectable, sparsity) FILTER (sparsity < coalesce(ends_at, 2)) AS detectable,
           list(sparsity ORDER BY sparsity) FILTER (verdict = 'better') AS better_at,
           min(sparsity) FILTER (at_chance AND sparsity > above_chance_to) AS chance_from,
           min(sparsity) FILTER (collapsed AND sparsity > sound_to) AS collapsed_from,
           min(sparsity) FILTER (knows AND sparsity > alive_to) AS gone, any_value(perplexity) AS perplexity,
           any_value(higher_is_better) AS higher_is_better,
           -- The dense model scores differently on another machine: this one was compared with the fewest zeros.
           arg_min(dense_score, (sparsity, dense_score)) AS dense_score,
           arg_max(score, _goodness(score, higher_is_better)) FILTER (round(sparsity, 4) = 0.5) AS at_50,
           arg_max(score, _goodness(score, higher_is_better)) FILTER (round(sparsity, 4) = 0.9) AS at_90
    FROM compared
    GROUP BY model, weights, dtype, task, metric, n, subset, num_fewshot, method, label
), placed AS (
    SELECT *, max(largest) FILTER (knows) OVER (PARTITION BY model, weights, dtype, task, n, subset, num_fewshot) >= 0.9 AS covered FROM found
)
SELECT *, _benchmark(task) AS benchmark, if(perplexity, detectable / dense_score, NULL) AS detectable_share,
       if(perplexity, half_width / dense_score, NULL) AS half_width_share,
       ends_at IS NULL AND largest >= 0.9 AS blind,
       row_number() OVER (PARTITION BY model, weights, dtype, task, n, subset, num_fewshot
                             ORDER BY knows DESC, kept_to DESC NULLS LAST, cleared_to DESC NULLS LAST, lost_at DESC, loss, label) = 1 AS best,
       (coalesce(covered, false), n) = max((coalesce(covered, false), n)) OVER (PARTITION BY model, weights, dtype, task,
           metric) AS most, min(gone) OVER one_task AS gone_from,
       arg_max(at_50, _goodness(at_50, higher_is_better)) FILTER (knows) OVER one_task AS best_50,
       if(perplexity, best_50, NULL) AS perplexity_50,
       arg_max(label, (_goodness(at_50, higher_is_better), label)) FILTER (knows
           AND at_50 IS NOT NULL) OVER one_task AS method_50,
       arg_max(at_90, _goodness(at_90, higher_is_better)) FILTER (knows) OVER one_task AS best_90,
       if(perplexity, best_90, NULL) AS perplexity_90, if(perplexity, dense_score, NULL) AS dense_perplexity,
       arg_max(label, (_goodness(at_90, higher_is_better), label)) FILTER (knows
           AND at_90 IS NOT NULL) OVER one_task AS method_90,
       count(*) FILTER (knows) OVER one_task AS ways, max(largest) OVER one_task AS furthest,
       count(coalesce(chance_from, collapsed_from)) FILTER (knows) OVER one_task AS fallen,
       min(coalesce(chance_from, collapsed_from)) FILTER (knows) OVER one_task AS first_fall,
       max(coalesce(chance_from, collapsed_from)) FILTER (knows) OVER one_task AS last_fall
FROM placed
WINDOW one_task AS (PARTITION BY model, weights, dtype, task, n, subset, num_fewshot)
ORDER BY model, dtype, task, n, num_fewshot, weights, subset, method, label
