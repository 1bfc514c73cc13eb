-- What a variant costs on one rank: the file, the peak of memory and loading, over dense in the same engine, and how many times as fast
-- prompt, token and request are as in the fastest engine that ran the dense model there (`rival`); `prompt_paired` is over dense in the
-- same. Of zeros at one sparsity the method that loses least. Dense kernels do not skip zeros: table `deepspeed` has them. Dense has a row
-- for each that ran it, in bytes and milliseconds. `widest`: of a model's machines the one where most did. `narrow`: llama.cpp was compiled
-- for fewer instructions than the machine has.
WITH asked AS (
    SELECT DISTINCT variant_id FROM cells WHERE weights <> 'random' /* manifests */
), times AS (
    SELECT variant_id, model, weights, machine, engine, workload, method, sparsity, max(started_at) AS started_at,
           bool_and(_dense_kernel(kernel)) AS plain, max(rivals) AS rivals,
           any_value(rival) FILTER (phase IN ('generate', 'forward')) AS rival,
           any_value(speedup) FILTER (phase IN ('prefill', 'encode')) AS prompt,
           any_value(paired) FILTER (phase = 'prefill') AS prompt_paired,
           any_value(speedup) FILTER (phase = 'decode') AS token,
           any_value(speedup) FILTER (phase IN ('generate', 'forward')) AS request,
           any_value(ms / dense_ms) FILTER (phase = 'load') AS loading,
           any_value(shown) FILTER (phase IN ('prefill', 'encode')) AS prompt_shown,
           any_value(shown) FILTER (phase = 'decode') AS token_shown,
           any_value(shown) FILTER (phase IN ('generate', 'forward')) AS request_shown,
           bool_or(engine = 'llamacpp' AND machine LIKE '%AVX-512%' AND kernel NOT LIKE '%avx512%') AS narrow,
           coalesce(bool_or(gains) FILTER (phase IN ('decode', 'forward')), false) AS gains
    FROM _headlines
    JOIN asked USING (variant_id)
    WHERE ranks = 1 AND verdict IS NOT NULL OR ranks = 1 AND phase = 'load'
    GROUP BY variant_id, model, weights, machine, engine, workload, method, sparsity, record_id
), peaks AS (
    SELECT variant_id, machine, engine, max(peak_bytes) AS peak, max(ratio) AS of_dense
    FROM memory
    WHERE phase = 'overall' AND rank IS NULL AND ranks = 1
    GROUP BY ALL
), files AS (
    SELECT variant_id, min(share) AS share FROM sizes WHERE format IN ('dense', 'packed') GROUP BY ALL
), dense_workload AS (  -- the workload that most ran dense on
    SELECT model, weights, machine, arg_min(workload, (-rivals, workload)) AS workload, max(rivals) AS rivals
    FROM _headlines
    JOIN asked USING (variant_id)
    WHERE phase <> 'load' AND ranks = 1
    GROUP BY ALL
), dense_size AS (
    SELECT model, weights, max(bytes) AS bytes FROM sizes WHERE format = 'dense' AND method = 'dense' GROUP BY ALL
), dense_peak AS (
    SELECT model, weights, machine, workload, dtype, _dense_engine(engine) AS name, min(peak_bytes) AS peak
    FROM memory
    WHERE method = 'dense' AND phase = 'overall' AND rank IS NULL AND ranks = 1
    GROUP BY ALL
), found AS (
    SELECT t.model, t.weights, machine_label(machine) AS processor, engine, rival, rivals, workload, words AS variant,
           r.kind, t.sparsity, share, of_dense AS peak, loading, prompt, prompt_paired, token, request, prompt_shown,
           token_shown, request_shown, narrow, gains, g.retained, g.ratio, coalesce(g.passes, false) AS passes,
           coalesce(g.ruined, false) AS ruined, plain
    FROM times t
    JOIN _recipes r USING (variant_id)
    LEFT JOIN peaks p USING (variant_id, machine, engine)
    LEFT JOIN files USING (variant_id)
    LEFT JOIN gate g USING (variant_id)
    WHERE t.method <> 'dense' AND NOT r.chance
    QUALIFY row_number() OVER (
        PARTITION BY t.model, t.weights, machine, engine, if(r.kind = 'zeros', t.sparsity::VARCHAR, words)
        ORDER BY rivals DESC, g.ratio, g.retained DESC NULLS LAST, workload, request DESC NULLS LAST, t.started_at DESC, variant_id
    ) = 1
    UNION ALL BY NAME
    SELECT model, weights, machine_label(machine) AS processor, name AS engine, d.dtype,
           any_value(workload) AS workload, any_value(rivals) AS rivals, 'dense' AS variant, 'dense' AS kind,
           0 AS sparsity, max(bytes) AS bytes, any_value(h.peak) AS peak_bytes,
           min(ms) FILTER (phase = 'load') AS load_ms,
           min(ms) FILTER (phase IN ('encode', 'prefill')) AS prompt_ms,
           min(ms) FILTER (phase = 'decode') AS token_ms,
           min(ms) FILTER (phase IN ('generate', 'forward')) AS request_ms,
           true AS passes, false AS ruined, false AS plain, false AS gains
    FROM _dense_times d
    JOIN dense_workload USING (model, weights, machine, workload)
    LEFT JOIN dense_size USING (model, weights)
    LEFT JOIN dense_peak h USING (model, weights, machine, workload, dtype, name)
    GROUP BY model, weights, machine, name, d.dtype
    -- Of number formats the one that writes a token first.
    QUALIFY row_number() OVER (PARTITION BY model, weights, machine, name ORDER BY coalesce(token_ms, request_ms), d.dtype) = 1
)
SELECT *, rivals = max(rivals) OVER (PARTITION BY model, weights) AS widest,
       coalesce(rivals > 1 AND token_ms = min(token_ms) OVER (PARTITION BY model, weights, processor), false) AS quickest
FROM found
ORDER BY model, processor, kind <> 'dense', engine <> 'hf', engine, kind <> 'bits', sparsity, variant
