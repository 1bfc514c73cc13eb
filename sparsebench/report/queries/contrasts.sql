-- What one ingredient of a method is worth: two variants of equal sparsity, on the same documents, that differ in it. Of several
-- that differ only in granularity or seed, the better one. Pruning alone: a chain differs in more than one ingredient. The ratio of two
-- perplexities has a 95% interval from ten windows on (Student's t over the windows, paired).
WITH scored AS (
    SELECT record_id, model, weights, dtype, task, metric, higher_is_better, scale, n, subset, num_fewshot, sparsity, method, granularity,
           text_number, inputs, method_label(method, granularity, 'unstructured') AS label, score, collapsed, v.dense_score, at_chance
    FROM scores
    JOIN ways USING (variant_id)
    JOIN (SELECT manifest, record_id, dense_score FROM vs_dense) v USING (manifest, record_id)
    WHERE weights <> 'random' AND pattern = 'unstructured' /* manifests */
          AND variant_id NOT IN (FROM _more_than_zeros)
    QUALIFY row_number() OVER (PARTITION BY model, weights, dtype, task, metric, n, subset, num_fewshot, sparsity, method, inputs, text_number
                               ORDER BY _goodness(score, higher_is_better) DESC, granularity, record_id) = 1
), paired AS (
    SELECT a.*, b.record_id AS after_id, b.label AS after_label, b.score AS after, a.collapsed AND b.collapsed AS both_collapsed,
           b.text_number AS after_text, coalesce(a.at_chance AND b.at_chance, false) AS guessed,
           CASE WHEN a.method = 'magnitude' AND b.method = 'wanda' THEN 'inputs'
                WHEN a.inputs = b.inputs AND a.text_number = b.text_number AND a.method = 'wanda' AND b.method = 'sparsegpt' THEN 'update'
                WHEN a.inputs = b.inputs AND a.text_number = b.text_number AND b.method = a.method || '+owl' THEN 'allocation'
                WHEN a.inputs = b.inputs AND a.text_number < b.text_number AND a.method = b.method THEN 'text'
                WHEN a.inputs <> '' AND b.inputs = '' AND a.text_number = b.text_number AND a.method = b.method THEN 'propagation'
           END AS ingredient
    FROM scored a
    JOIN scored b ON (b.model, b.weights, b.dtype, b.task, b.metric, b.n, b.subset, b.sparsity)
                   = (a.model, a.weights, a.dtype, a.task, a.metric, a.n, a.subset, a.sparsity)
                 AND b.num_fewshot IS NOT DISTINCT FROM a.num_fewshot
    -- Magnitude reads no text: beside it stands Wanda with the first text that it read.
    QUALIFY ingredient <> 'inputs' OR row_number() OVER (PARTITION BY a.record_id, ingredient ORDER BY b.text_number, b.inputs, b.record_id) = 1
), sums AS (
    SELECT p.record_id, p.after_id, count(*) AS windows, sum(o.value - b.value) / sum(o.label) AS shift,
           sum((o.value - b.value) ** 2) - 2 * shift * sum((o.value - b.value) * o.label) + shift ** 2 * sum(o.label ** 2) AS rest, sum(o.label) AS tokens
    FROM (SELECT DISTINCT record_id, after_id FROM paired WHERE ingredient IS NOT NULL AND scale = 'perplexity') p
    JOIN base.outcomes b ON b.record_id = p.record_id
    JOIN base.outcomes o ON o.record_id = p.after_id AND o.doc_id = b.doc_id AND o.doc_hash = b.doc_hash
    GROUP BY p.record_id, p.after_id
    HAVING windows >= 10
), intervals AS (
    SELECT record_id, after_id, shift, _ratio_half(rest, windows, tokens) AS half FROM sums
)
SELECT ingredient, model, weights, dtype, task, metric, n, subset, num_fewshot, sparsity, if(inputs = '', 'pruned', 'dense') AS inputs,
       concat(label, if(ingredient = 'propagation', '', inputs),
           if(ingredient <> 'text' AND text_number > 1, ', text ' || text_number, '')) AS label,
       concat(after_label, if(ingredient = 'inputs' AND after_text > 1, ', text ' || after_text, '')) AS after_label, dense_score,
       score AS before, after,
       text_number AS before_text, after_text, CASE WHEN scale = 'perplexity' THEN score END AS before_perplexity,
       CASE WHEN scale = 'perplexity' THEN after END AS after_perplexity,
       _benchmark(task) AS benchmark,
       coalesce(before_perplexity > 3 * dense_score AND after_perplexity > 3 * dense_score, false) AS both_ruined,
       NOT (guessed OR both_collapsed) AS sound,
       if(sound, sign(_goodness(after, higher_is_better) - _goodness(score, higher_is_better)), 0) AS lead,
       exp(shift - half) AS times_low, exp(shift + half) AS times_high
FROM paired
LEFT JOIN intervals USING (record_id, after_id)
WHERE ingredient IS NOT NULL
ORDER BY ingredient, model, dtype, task, n, num_fewshot, weights, subset, label, after_label, before_text, after_text, sparsity
