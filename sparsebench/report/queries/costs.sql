-- What a variant costs beside dense, on one rank in one job: the file, the peak of memory, loading, and the time of prompt, token and
-- request. Of zeros at one sparsity the method that loses least. Dense kernels do not skip zeros: they are counted in another row.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), times AS (
    SELECT variant_id, model, weights, machine, engine, workload, method, sparsity, max(started_at) AS started_at, bool_and(_dense_kernel(kernel)) AS plain,
           any_value(speedup) FILTER (phase IN ('prefill', 'encode')) AS prompt, any_value(speedup) FILTER (phase = 'decode') AS token,
           any_value(speedup) FILTER (phase IN ('generate', 'forward')) AS request, any_value(ms / dense_ms) FILTER (phase = 'load') AS loading,
           any_value(dense_ms) FILTER (phase = 'load') AS dense_load,
           any_value(dense_ms) FILTER (phase IN ('prefill', 'encode')) AS dense_prompt, any_value(dense_ms) FILTER (phase = 'decode') AS dense_token,
           any_value(dense_ms) FILTER (phase IN ('generate', 'forward')) AS dense_request,
           any_value(verdict) FILTER (phase IN ('generate', 'forward')) AS verdict, any_value(verdict) FILTER (phase = 'decode') AS token_verdict
    FROM latency
    JOIN asked USING (variant_id)
    WHERE ranks = 1 AND verdict IS NOT NULL OR ranks = 1 AND phase = 'load'
    GROUP BY variant_id, model, weights, machine, engine, workload, method, sparsity, record_id
), peaks AS (
    SELECT variant_id, machine, engine, max(peak_bytes) AS peak, max(ratio) AS of_dense FROM memory WHERE phase = 'overall' AND rank IS NULL AND ranks = 1 GROUP BY ALL
), files AS (
    SELECT variant_id, min(share) AS share FROM sizes WHERE format = 'packed' GROUP BY ALL
)
SELECT t.model, t.weights, machine_label(machine) AS processor, engine, workload, words AS variant, r.kind, t.sparsity, share, of_dense AS peak, loading, prompt, token, request,
       verdict, token_verdict, coalesce(g.passes, false) AS passes, coalesce(g.ruined, false) AS ruined, plain, dense_load, dense_prompt, dense_token, dense_request
FROM times t
JOIN _recipes r USING (variant_id)
LEFT JOIN peaks p USING (variant_id, machine, engine)
LEFT JOIN files USING (variant_id)
LEFT JOIN gate g USING (variant_id)
WHERE t.method <> 'dense' AND NOT r.chance
QUALIFY row_number() OVER (PARTITION BY t.model, machine, engine, if(r.kind = 'zeros', t.sparsity::VARCHAR, words) ORDER BY g.ratio, t.started_at DESC, variant_id) = 1
ORDER BY t.model, machine, engine <> 'hf', engine, r.kind <> 'bits', t.sparsity, words
