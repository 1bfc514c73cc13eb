-- title: What training after pruning regains
-- finding: finding
-- about: how much quality training after pruning regains, and what then passes the quality gate
-- kind: line
-- x: thousands
-- y: kept
-- series: zeros
-- place: place
-- bound: bound
-- facet: panel
-- columns: 2
-- reference: gate = gate
-- yshare: yes
-- yscale: percent
-- ymin: -0.05
-- xlabel: thousands of tokens trained on
-- ylabel: quality kept, % of dense's
-- footnote: left_out
-- note: At 0: before that training. Zeros stay zero. Quality: dense's perplexity over the variant's or, of models without a perplexity, the least skill kept on a task. The gate is 1.1 times dense's perplexity, or 95% of its skill. Of several trainings at one sparsity the one that ends best, without those of less than a twentieth of the model's longest; the line joins its two ends and says nothing of the way.
-- boundnote: Grey: trained, but still below the quality gate.

WITH judged AS (
    SELECT variant_id, coalesce(1 / ratio, greatest(retained, 0)) AS kept, passes, ratio IS NOT NULL AS reads FROM gate WHERE tasks > 0
), trained AS (
    SELECT DISTINCT r.model, v.weights, r.variant_id, r.sparsity, r.trained_tokens AS tokens, v.parent
    FROM recovered r
    JOIN variants v USING (variant_id)
    WHERE r.sparsity > 0 AND r.trained_tokens IS NOT NULL
    -- Much shorter ones would be a dot.
    QUALIFY tokens >= 0.05 * max(tokens) OVER (PARTITION BY r.model, v.weights)
), ends AS (
    SELECT t.model, t.weights, t.sparsity, t.tokens, b.kept AS before, a.kept AS after, a.passes, a.reads,
           row_number() OVER (PARTITION BY t.model, t.weights, t.sparsity
               ORDER BY a.kept DESC, t.tokens, t.variant_id) = 1 AS best
    FROM trained t
    JOIN judged a USING (variant_id)
    JOIN judged b ON b.variant_id = t.parent AND b.reads = a.reads
), counted AS (
    SELECT *, count(*) OVER (PARTITION BY model, weights) AS lines, max(after) OVER (PARTITION BY model, weights) AS highest FROM ends WHERE best
), numbered AS (
    SELECT *, dense_rank() OVER (ORDER BY lines DESC, highest DESC, model, weights) <= 4 AS shown FROM counted
), passed AS (
    SELECT string_agg(format('{} ({}% zeros)', model, sparsities), ', ' ORDER BY model) FILTER (passes) AS words,
           count(*) FILTER (passes) > 1 AS several, bool_or(NOT passes) AS failing
    FROM (SELECT model, passes,
        string_agg(DISTINCT percent_label(sparsity), ' and ' ORDER BY percent_label(sparsity)) AS sparsities FROM numbered
            GROUP BY ALL)
)
SELECT concat(if(count(DISTINCT weights) OVER (PARTITION BY model) > 1, model_label(model, weights), model),
           if(reads, ': perplexity', ': skill')) AS panel, unnest([0, tokens / 1000]) AS thousands,
               unnest([before, after]) AS kept, percent_label(sparsity) || if(passes, '%: passes', '% zeros') AS zeros,
               NOT passes AS bound,
       dense_rank() OVER (PARTITION BY passes ORDER BY sparsity) + 7 AS place, if(reads, 1 / 1.1, 0.95) AS gate,
       (SELECT concat('Pruned and trained, ', coalesce(if(failing, 'only ', '') || words, 'no model'),
           if(several, ' pass', ' passes'), ' the quality gate') FROM passed) AS finding,
       (SELECT 'Not drawn: ' || string_agg(DISTINCT model, ', ' ORDER BY model) || ', with the fewest trainings.' FROM numbered
           WHERE NOT shown) AS left_out
FROM numbered
WHERE shown
ORDER BY panel, bound, sparsity, thousands;
