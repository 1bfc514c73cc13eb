-- Every number that a page quotes from the published records, by its key. A page has the number and then `<!--=key-->`, which no
-- reader sees; `make report` writes them anew, and a test compares.
WITH easy AS (
    SELECT any_value(score) FILTER (method = 'wanda' AND round(sparsity, 2) = 0.9) AS score, any_value(chance) AS chance
    FROM scores
    WHERE manifest = 'small' AND model = 'smollm2-135m' AND task = 'arc_easy'
), archives AS (
    SELECT max(bytes) FILTER (format = 'archive') / max(bytes) FILTER (format = 'packed') AS share
    FROM sizes
    WHERE dtype = 'bfloat16' AND weights <> 'random'
    GROUP BY manifest, variant_id
), deepspeed AS (
    SELECT count(*) AS comparisons, count(*) FILTER (verdict = 'faster') AS faster
    FROM (FROM latency QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1)
    WHERE engine = 'deepspeed' AND model = 'smollm2-135m' AND method <> 'dense' AND phase NOT IN ('load', 'generate') AND variant_id NOT IN (FROM _more_than_zeros)
), perplexity AS (
    SELECT any_value(score) FILTER (method = 'dense') AS dense, any_value(score) FILTER (method = 'magnitude' AND granularity = 'layer') AS magnitude,
           any_value(score) FILTER (method = 'wanda' AND propagate = 'pruned') AS wanda
    FROM scores
    JOIN (SELECT DISTINCT variant_id, propagate FROM cells) USING (variant_id)
    WHERE manifest = 'methods' AND task = 'perplexity' AND pattern = 'unstructured' AND round(sparsity, 2) IN (0, 0.5)
), skipping AS (
    SELECT recipe, d.ratio, 100 * read_share AS read, seconds
    FROM vs_dense d
    JOIN variants USING (variant_id)
    WHERE d.manifest = 'kinds'
), compared AS (
    SELECT d.manifest, d.model, d.task, recipe, d.ratio, d.score, d.dense_score, d.loss_at_most, d.verdict, 100 * read_share AS read
    FROM vs_dense d
    JOIN variants USING (variant_id)
), answered AS (
    SELECT recipe, d.task, d.retained, d.dense_score
    FROM vs_dense d
    JOIN variants USING (variant_id)
    WHERE d.manifest = 'answers'
), prompts AS (
    SELECT recipe, 1 / speedup AS slower
    FROM latency l
    JOIN variants USING (variant_id)
    WHERE l.manifest = 'kinds' AND engine = 'skip' AND phase = 'prefill'
), shapes AS (
    SELECT recipe, d.ratio
    FROM vs_dense d
    JOIN variants USING (variant_id)
    WHERE d.manifest = 'shapes' AND d.model = 'smollm2-135m'
), coder AS (
    SELECT recipe, phase, speedup
    FROM latency
    JOIN variants USING (variant_id)
    WHERE latency.manifest = 'coder' AND (baseline = 'paired' OR phase = 'load')
), trainings AS (
    SELECT DISTINCT manifest, v.recipe, v.seconds / 60 AS minutes FROM cells JOIN variants v USING (variant_id) WHERE trained_tokens > 0
), packed_coder AS (
    SELECT DISTINCT recipe, share
    FROM sizes
    JOIN variants USING (variant_id)
    WHERE sizes.manifest = 'coder' AND format = 'packed'
), alike AS (
    SELECT count(*) AS phases, count(*) FILTER (speedup_low > 1 OR speedup_high < 1) AS apart
    FROM (FROM latency WHERE method = 'dense' AND phase <> 'load' AND processes >= 4 AND speedup IS NOT NULL
          QUALIFY row_number() OVER (PARTITION BY record_id, phase ORDER BY manifest) = 1)
), kinds AS (
    SELECT recipe, any_value(d.score) AS score, any_value(d.dense_score) AS dense, any_value(s.share) AS packed
    FROM vs_dense d
    JOIN variants USING (variant_id)
    JOIN sizes s USING (manifest, variant_id)
    WHERE d.manifest = 'kinds' AND s.format = 'packed'
    GROUP BY ALL
), passing AS (
    -- As the report's first table: over the fastest engine that ran the dense model, where most did.
    SELECT variant_id, g.model, v.recipe, 100 * g.retained AS skill, g.ratio, 100 * min(s.share) AS file,
           max(speedup) AS request, arg_max(doubt, speedup) AS doubt
    FROM gate g
    JOIN variants v USING (variant_id)
    JOIN sizes s USING (variant_id)
    LEFT JOIN (SELECT variant_id, speedup, if(gains OR loses, '', '?') AS doubt FROM _headlines WHERE phase = 'generate' AND workload LIKE 'b1 p128 %' QUALIFY rivals = max(rivals) OVER (PARTITION BY variant_id)) USING (variant_id)
    WHERE passes AND s.format IN ('dense', 'packed')
    GROUP BY ALL
), dense_engines AS (
    SELECT name, min(ms) FILTER (phase = 'decode') AS token, min(ms) FILTER (phase = 'prefill') AS prompt
    FROM _dense_times
    JOIN (SELECT DISTINCT model, machine, workload FROM throughput WHERE manifest = 'llamacpp' AND workload LIKE 'b1 p128 %') USING (model, machine, workload)
    -- Of llama.cpp's formats the one that writes a token first, as in the report.
    WHERE (name, dtype) <> ('llama.cpp', 'bfloat16')
    GROUP BY name
), per_second AS (
    SELECT v.recipe, t.tokens_per_second, t.ms
    FROM throughput t
    JOIN variants v USING (variant_id)
    WHERE t.manifest = 'llamacpp' AND t.workload = 'b1 p128 g32' AND t.phase = 'decode'
), ours AS (
    -- Over the fastest engine that ran the dense model, as in the report.
    SELECT v.recipe, phase, speedup, ms, dense_ms, if(gains OR loses, '', '?') AS doubt
    FROM _headlines l
    JOIN variants v USING (variant_id)
    WHERE l.manifest = 'llamacpp' AND l.model = 'smollm2-135m' AND engine = 'sparse' AND workload LIKE 'b1 p128 %'
), longer AS (
    SELECT v.recipe, max(speedup) AS speedup
    FROM (FROM _long_answers QUALIFY rivals = max(rivals) OVER (PARTITION BY variant_id))
    JOIN variants v USING (variant_id)
    WHERE v.model = 'qwen2.5-coder-1.5b' AND workload = 'b1 p128 g16'
    GROUP BY v.recipe
), held_once AS (
    -- The 1.5B model's files hold its embedding a second time, as the output head; GGUF does not.
    SELECT v.recipe, s.bytes,
           (SELECT max(bytes) FROM sizes WHERE model = 'qwen2.5-coder-1.5b' AND method = 'dense' AND format = 'dense') AS dense,
           (SELECT 2 * max(count) FROM tensors WHERE model = 'qwen2.5-coder-1.5b' AND method = 'dense' AND name = 'lm_head.weight') AS twice
    FROM sizes s
    JOIN variants v USING (variant_id)
    WHERE v.model = 'qwen2.5-coder-1.5b' AND s.format IN ('dense', 'packed')
), answer AS (
    -- Of variants whose recipes read alike, trained for longer or made elsewhere, the better one.
    SELECT model, recipe, what, max(said) AS said
    FROM (UNPIVOT (SELECT model, recipe, if(skill BETWEEN 99.5 AND 99.999, '>99%', format('{:.0f}%', skill)) AS skill, format('{:.2f}', ratio) AS ratio, format('{:.0f}%', file) AS file, format('{:.1f}{}', request, doubt) AS request FROM passing)
          ON skill, ratio, file, request INTO NAME what VALUE said)
    GROUP BY ALL
)
SELECT 'real_models' AS key, format('{}', count(DISTINCT model)) AS said FROM cells WHERE weights <> 'random' AND manifest NOT LIKE 'features%'
UNION ALL SELECT 'coder_q4_long', format('{:.1f}', speedup) FROM longer WHERE recipe = 'gguf Q4_K_M'
UNION ALL SELECT 'coder_int4_long', format('{:.1f}', speedup) FROM longer WHERE recipe = 'int4'
UNION ALL SELECT 'coder_q4_once', format('{:.0f}%', 100 * max(bytes) FILTER (recipe = 'gguf Q4_K_M') / any_value(dense - twice)) FROM held_once
UNION ALL SELECT 'coder_int4_once', format('{:.0f}%', 100 * (max(bytes) FILTER (recipe = 'int4') - any_value(twice)) / any_value(dense - twice)) FROM held_once
UNION ALL SELECT 'smol_wanda_20_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'llamacpp' AND task = 'perplexity' AND recipe = 'wanda/row 20% propagate=dense'
UNION ALL SELECT 'smol_sparsegpt_30_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'kinds' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 30% propagate=dense'
UNION ALL SELECT 'coder_wanda_20_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'wanda/row 20% propagate=dense'
UNION ALL SELECT 'coder_wanda_40_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'wanda/row 40% propagate=dense'
UNION ALL SELECT 'coder_wanda_50_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'wanda/row 50% propagate=dense'
UNION ALL SELECT 'coder_int8_prefill', format('{:.1f}', 1 / speedup) FROM coder WHERE recipe = 'int8' AND phase = 'prefill'
UNION ALL SELECT 'coder_int4_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'int4'
UNION ALL SELECT 'coder_sparsegpt_50_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 'coder_trained_ratio', format('{:.2f}', ratio) FROM compared WHERE manifest = 'coder' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 50% propagate=dense, then reconstruct tokens=16384 epochs=1 batch=1 rate=0.0001'
UNION ALL SELECT 'pruned_sparsegpt_70', format('{:.1f}', any_value(ratio)) FROM compared WHERE manifest = 'methods' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 70%'
UNION ALL SELECT 'pruned_alps_70', format('{:.1f}', any_value(ratio)) FROM compared WHERE manifest = 'methods' AND task = 'perplexity' AND recipe = 'alps/layer 70%'
UNION ALL SELECT 'gemma_trimmed_share', format('{:.0f}%', 100 * any_value(share)) FROM sizes WHERE manifest = 'embeddinggemma' AND format = 'packed' AND variant_id IN (SELECT variant_id FROM steps WHERE step = 'trim')
UNION ALL SELECT 'coder_gguf_file', format('{:.0f}%', 100 * any_value(share)) FROM sizes WHERE manifest = 'coder' AND format = 'source'
UNION ALL SELECT 'coder_int4_file', format('{:.0f}%', 100 * share) FROM packed_coder WHERE recipe = 'int4'
UNION ALL SELECT 'coder_wanda_50_file', format('{:.0f}%', 100 * share) FROM packed_coder WHERE recipe = 'wanda/row 50% propagate=dense'
UNION ALL SELECT 'coder_int4_prefill', format('{:.1f}', 1 / speedup) FROM coder WHERE recipe = 'int4' AND phase = 'prefill'
UNION ALL SELECT 'smol_llamacpp_token', format('{:.1f}', max(token) FILTER (name = 'plain torch') / max(token) FILTER (name = 'llama.cpp')) FROM dense_engines
UNION ALL SELECT 'smol_torch_prompt', format('{:.1f}', max(prompt) FILTER (name = 'llama.cpp') / max(prompt) FILTER (name = 'plain torch')) FROM dense_engines
UNION ALL SELECT 'smol_int8_behind', format('{:.2f}{}', speedup, doubt) FROM ours WHERE recipe = 'int8' AND phase = 'decode'
UNION ALL SELECT 'smol_sparse_rate', format('{:.0f}', max(tokens_per_second)) FROM per_second WHERE recipe = 'magnitude/layer 50%'
UNION ALL SELECT 'smol_int8_rate', format('{:.0f}', max(tokens_per_second)) FROM per_second WHERE recipe = 'int8'
UNION ALL SELECT 'smol_q8_rate', format('{:.0f}', max(tokens_per_second)) FROM per_second WHERE recipe = 'gguf Q8_0'
UNION ALL SELECT 'smol_own_token', format('{:.1f}', max(token) FILTER (name = 'plain torch') / max(token) FILTER (name = 'our dense kernels')) FROM dense_engines
UNION ALL SELECT 'smol_zeros_token', format('{:.2f}{}', speedup, doubt) FROM ours WHERE recipe = 'magnitude/layer 50%' AND phase = 'decode'
UNION ALL SELECT 'smol_zeros_request', format('{:.2f}{}', speedup, doubt) FROM ours WHERE recipe = 'magnitude/layer 50%' AND phase = 'generate'
UNION ALL SELECT 'smol_zeros_prompt', format('{:.1f}{}', 1 / speedup, doubt) FROM ours WHERE recipe = 'magnitude/layer 50%' AND phase = 'prefill'
UNION ALL SELECT 'smol_zeros_load', format('{:.1f}', ms / dense_ms) FROM ours WHERE recipe = 'magnitude/layer 50%' AND phase = 'load'
UNION ALL SELECT 'smol_int8_prompt', format('{:.1f}', 1 / speedup) FROM ours WHERE recipe = 'int8' AND phase = 'prefill'
UNION ALL SELECT 'smol_int8_long_prompt', format('{:.1f}', 1 / max(speedup)) FROM _headlines JOIN variants v USING (variant_id) WHERE v.model = 'smollm2-135m' AND v.recipe = 'int8' AND engine = 'sparse' AND phase = 'prefill' AND workload LIKE 'b1 p512 %' AND rivals > 1
UNION ALL SELECT 'coder_zeros_file', format('{:.0f}%', 100 * share) FROM packed_coder WHERE recipe = 'wanda/row 30% propagate=dense'
UNION ALL SELECT 'smol_zeros_20_file', format('{:.0f}%', 100 * any_value(share)) FROM sizes JOIN variants USING (variant_id, model) WHERE manifest = 'shapes' AND model = 'smollm2-135m' AND recipe = 'sparsegpt/layer 20%' AND format = 'packed'
UNION ALL SELECT 'kinds_gguf_file', format('{:.1f}%', 100 * any_value(share)) FROM sizes WHERE manifest = 'kinds' AND format = 'source'
UNION ALL SELECT 'kinds_sparsegpt_50_ratio', format('{:.2f}', score / dense) FROM kinds WHERE recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 'trained_blocks_50_minutes', format('{:.1f}', minutes) FROM trainings WHERE manifest = 'training' AND recipe = 'sparsegpt/layer 50% propagate=dense, then reconstruct'
UNION ALL SELECT 'trained_chain_50_minutes', format('{:.0f}', minutes) FROM trainings WHERE manifest = 'training' AND recipe = 'sparsegpt/layer 50% propagate=dense, then reconstruct, then distill tokens=200000 length=256'
UNION ALL SELECT 'trained_whole_70_minutes', format('{:.0f}', minutes) FROM trainings WHERE manifest = 'training' AND recipe = 'sparsegpt/layer 70% propagate=dense, then distill tokens=300000 length=256'
UNION ALL SELECT 't5_70_4m_minutes', format('{:.1f}', minutes) FROM trainings WHERE manifest = 'g2p-recovery' AND recipe = 'magnitude/layer 70%, then distill g2p-words.jsonl tokens=4000000 length=64 batch=64 rate=0.001'
UNION ALL SELECT 'ml_least_minutes', format('{:.1f}', min(minutes)) FROM trainings WHERE manifest = 'minilm-recovery'
UNION ALL SELECT 'ml_most_minutes', format('{:.1f}', max(minutes)) FROM trainings WHERE manifest = 'minilm-recovery'
UNION ALL SELECT 'aa_phases', format('{}', phases) FROM alike
UNION ALL SELECT 'aa_apart', format('{}', apart) FROM alike
UNION ALL SELECT 'rehearsed_models', format('{}', count(DISTINCT model)) FROM cells WHERE weights = 'random'
UNION ALL SELECT 'shapes_flap_uneven', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'flap/both to 0.8 of parameters, uneven=True'
UNION ALL SELECT 'shapes_taylor_neurons', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'taylor/neurons to 0.8 of parameters, least squares, labels=text'
UNION ALL SELECT 'shapes_random_fitted', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'random/both to 0.8 of parameters, least squares'
UNION ALL SELECT 'shapes_sleb_4', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'sleb -4 blocks'
UNION ALL SELECT 'shapes_random_8', format('{:.1f}', ratio) FROM shapes WHERE recipe = 'random -8 blocks'
UNION ALL SELECT 'shapes_sleb_8', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'sleb -8 blocks'
UNION ALL SELECT 'shapes_zeros_20', format('{:.2f}', ratio) FROM shapes WHERE recipe = 'sparsegpt/layer 20%'
UNION ALL SELECT 'arc_easy_90', format('{:.2f}', score) FROM easy
UNION ALL SELECT 'arc_easy_chance', format('{:.2f}', chance) FROM easy
UNION ALL SELECT 'archive_least', format('{:.0f}%', 100 * min(share)) FROM archives
UNION ALL SELECT 'archive_most', format('{:.0f}%', 100 * max(share)) FROM archives
UNION ALL SELECT 'deepspeed_comparisons', format('{}', comparisons) FROM deepspeed
UNION ALL SELECT 'deepspeed_faster', format('{}', faster) FROM deepspeed
UNION ALL SELECT 'perplexity_dense', format('{:.1f}', dense) FROM perplexity
UNION ALL SELECT 'perplexity_magnitude_50', format('{:.0f}', magnitude) FROM perplexity
UNION ALL SELECT 'perplexity_wanda_50', format('{:.0f}', wanda) FROM perplexity
UNION ALL SELECT 'teal_25_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'teal 25% of inputs'
UNION ALL SELECT 'teal_25_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'teal 25% of inputs'
UNION ALL SELECT 'greedy_40_seconds', format('{:.0f}', seconds) FROM skipping WHERE recipe = 'teal 40% of inputs, greedy'
UNION ALL SELECT 'teal_40_prompt', format('{:.2f}', slower) FROM prompts WHERE recipe = 'teal 40% of inputs'
UNION ALL SELECT 'teal_40_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'teal 40% of inputs'
UNION ALL SELECT 'teal_40_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'teal 40% of inputs'
UNION ALL SELECT 'greedy_40_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'teal 40% of inputs, greedy'
UNION ALL SELECT 'greedy_40_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'teal 40% of inputs, greedy'
UNION ALL SELECT 'cats_50_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'cats 50% of activations'
UNION ALL SELECT 'cats_50_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'cats 50% of activations'
UNION ALL SELECT 'oracle_50_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'coactivation/oracle 16 of 32 experts'
UNION ALL SELECT 'oracle_50_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'coactivation/oracle 16 of 32 experts'
UNION ALL SELECT 'representative_50_read', format('{:.1f}%', read) FROM skipping WHERE recipe = 'coactivation/representative 16 of 32 experts'
UNION ALL SELECT 'representative_50_ratio', format('{:.2f}', ratio) FROM skipping WHERE recipe = 'coactivation/representative 16 of 32 experts'
UNION ALL SELECT 'kinds_dense', format('{:.2f}', any_value(dense)) FROM kinds
UNION ALL SELECT 'int8_score', format('{:.2f}', score) FROM kinds WHERE recipe = 'int8'
UNION ALL SELECT 'int8_packed', format('{:.1f}%', 100 * packed) FROM kinds WHERE recipe = 'int8'
UNION ALL SELECT 'int4_score', format('{:.2f}', score) FROM kinds WHERE recipe = 'int4'
UNION ALL SELECT 'int4_packed', format('{:.1f}%', 100 * packed) FROM kinds WHERE recipe = 'int4'
UNION ALL SELECT 'int4_gptq_score', format('{:.2f}', score) FROM kinds WHERE recipe = 'int4 rounding=gptq'
UNION ALL SELECT 'int4_gptq_packed', format('{:.1f}%', 100 * packed) FROM kinds WHERE recipe = 'int4 rounding=gptq'
UNION ALL SELECT 'sparsegpt_50_score', format('{:.2f}', score) FROM kinds WHERE recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 'sparsegpt_50_packed', format('{:.1f}%', 100 * packed) FROM kinds WHERE recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 'sparsegpt_50_int8_score', format('{:.2f}', score) FROM kinds WHERE recipe = 'sparsegpt/layer 50% propagate=dense, then int8'
UNION ALL SELECT 'sparsegpt_50_int8_packed', format('{:.1f}%', 100 * packed) FROM kinds WHERE recipe = 'sparsegpt/layer 50% propagate=dense, then int8'
UNION ALL SELECT 't5_random_oracle_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'random/oracle 16 of 32 experts'
UNION ALL SELECT 't5_random_representative_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'random/representative 16 of 32 experts'
UNION ALL SELECT 't5_kmeans_oracle_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'kmeans/oracle 16 of 32 experts'
UNION ALL SELECT 't5_kmeans_learned_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'kmeans/learned 16 of 32 experts'
UNION ALL SELECT 't5_kmeans_representative_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'kmeans/representative 16 of 32 experts'
UNION ALL SELECT 't5_coactivation_oracle_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'coactivation/oracle 16 of 32 experts'
UNION ALL SELECT 't5_coactivation_learned_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'coactivation/learned 16 of 32 experts'
UNION ALL SELECT 't5_coactivation_representative_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'coactivation/representative 16 of 32 experts'
UNION ALL SELECT 't5_cmoe_oracle_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'cmoe/oracle 16 of 32 experts'
UNION ALL SELECT 't5_cmoe_learned_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'cmoe/learned 16 of 32 experts'
UNION ALL SELECT 't5_cmoe_representative_50', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'cmoe/representative 16 of 32 experts'
UNION ALL SELECT 't5_dense', format('{:.3f}', any_value(dense_score)) FROM compared WHERE manifest = 'g2p-skipping'
UNION ALL SELECT 't5_teal_40', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'teal 40% of inputs'
UNION ALL SELECT 't5_teal_40_read', format('{:.0f}%', read) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'teal 40% of inputs'
UNION ALL SELECT 't5_passages_coactivation_50', format('{:.3f}', score) FROM compared WHERE manifest = 'skipping' AND model = 'g2p-t5' AND recipe = 'coactivation/learned 16 of 32 experts'
UNION ALL SELECT 't5_cats_read', format('{:.0f}%', read) FROM compared WHERE manifest = 'skipping' AND model = 'g2p-t5' AND recipe = 'cats 50% of activations'
UNION ALL SELECT 't5_cats', format('{:.3f}', score) FROM compared WHERE manifest = 'skipping' AND model = 'g2p-t5' AND recipe = 'cats 50% of activations'
UNION ALL SELECT 't5_sparse', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 't5_sparse_teal', format('{:.3f}', score) FROM compared WHERE manifest = 'g2p-skipping' AND recipe = 'sparsegpt/layer 50% propagate=dense, then teal 40% of inputs'
UNION ALL SELECT 'minilm_worse_50', format('{}', count(*) FILTER (verdict = 'worse')) FROM compared WHERE manifest = 'skipping' AND model = 'minilm-l6' AND task = 'sciq_retrieval' AND recipe LIKE '%16 of 32 experts'
UNION ALL SELECT 'minilm_unskilled_50', format('{}', count(*) FILTER (verdict = 'at chance')) FROM compared WHERE manifest = 'skipping' AND model = 'minilm-l6' AND task = 'sciq_retrieval' AND recipe LIKE '%16 of 32 experts'
UNION ALL SELECT 'trained_sparsegpt_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 50% propagate=dense'
UNION ALL SELECT 'trained_sparsegpt_70', format('{:.1f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 70% propagate=dense'
UNION ALL SELECT 'trained_sparsegpt_90', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 90% propagate=dense'
UNION ALL SELECT 'trained_sparsegpt_95', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 95% propagate=dense'
UNION ALL SELECT 'trained_alps_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'alps/layer 50% propagate=dense'
UNION ALL SELECT 'trained_alps_70', format('{:.1f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'alps/layer 70% propagate=dense'
UNION ALL SELECT 'trained_alps_90', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'alps/layer 90% propagate=dense'
UNION ALL SELECT 'trained_alps_95', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'alps/layer 95% propagate=dense'
UNION ALL SELECT 'trained_wanda_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'wanda/row 50% propagate=dense'
UNION ALL SELECT 'trained_blocks_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 50% propagate=dense, then reconstruct'
UNION ALL SELECT 'trained_chain_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 50% propagate=dense, then reconstruct, then distill tokens=200000 length=256'
UNION ALL SELECT 'trained_blocks_70', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 70% propagate=dense, then reconstruct'
UNION ALL SELECT 'trained_wanda_blocks_50', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'wanda/row 50% propagate=dense, then reconstruct'
UNION ALL SELECT 'trained_whole_70', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 70% propagate=dense, then distill tokens=300000 length=256'
UNION ALL SELECT 'trained_whole_90', format('{:.1f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 90% propagate=dense, then distill tokens=200000 length=256 rate=0.0003'
UNION ALL SELECT 'trained_whole_95', format('{:.1f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'sparsegpt/layer 95% propagate=dense, then distill tokens=200000 length=256 rate=0.0003'
UNION ALL SELECT 'trained_elsa_90', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'elsa 90% tokens=200000 length=256 interval=8'
UNION ALL SELECT 'trained_elsa_95', format('{:,}', ratio::BIGINT) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'elsa 95% tokens=200000 length=256 interval=8'
UNION ALL SELECT 'trained_int8', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'int8'
UNION ALL SELECT 'trained_int4', format('{:.2f}', ratio) FROM compared WHERE manifest = 'training' AND task = 'perplexity' AND recipe = 'int4'
UNION ALL SELECT key, format('{:.3f}', CASE what WHEN 'score' THEN score WHEN 'dense' THEN dense_score ELSE loss_at_most END)
FROM compared
JOIN (VALUES
    ('t5_dense_whole', 'g2p-recovery', 'g2p', 'dense', 'magnitude/layer 50%'),
    ('t5_dense_per', 'g2p-recovery', 'g2p_per', 'dense', 'magnitude/layer 50%'),
    ('t5_70', 'g2p-recovery', 'g2p', 'score', 'magnitude/layer 70%'),
    ('t5_70_most', 'g2p-recovery', 'g2p', 'loss', 'magnitude/layer 70%'),
    ('t5_70_per', 'g2p-recovery', 'g2p_per', 'score', 'magnitude/layer 70%'),
    ('t5_70_per_most', 'g2p-recovery', 'g2p_per', 'loss', 'magnitude/layer 70%'),
    ('t5_80', 'g2p-recovery', 'g2p', 'score', 'magnitude/layer 80%'),
    ('t5_80_most', 'g2p-recovery', 'g2p', 'loss', 'magnitude/layer 80%'),
    ('t5_80_per', 'g2p-recovery', 'g2p_per', 'score', 'magnitude/layer 80%'),
    ('t5_80_per_most', 'g2p-recovery', 'g2p_per', 'loss', 'magnitude/layer 80%'),
    ('t5_70_4m', 'g2p-recovery', 'g2p', 'score', 'magnitude/layer 70%, then distill g2p-words.jsonl tokens=4000000 length=64 batch=64 rate=0.001'),
    ('t5_70_4m_most', 'g2p-recovery', 'g2p', 'loss', 'magnitude/layer 70%, then distill g2p-words.jsonl tokens=4000000 length=64 batch=64 rate=0.001'),
    ('t5_70_4m_per', 'g2p-recovery', 'g2p_per', 'score', 'magnitude/layer 70%, then distill g2p-words.jsonl tokens=4000000 length=64 batch=64 rate=0.001'),
    ('t5_70_4m_per_most', 'g2p-recovery', 'g2p_per', 'loss', 'magnitude/layer 70%, then distill g2p-words.jsonl tokens=4000000 length=64 batch=64 rate=0.001'),
    ('t5_80_1m', 'g2p-recovery', 'g2p', 'score', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('t5_80_1m_most', 'g2p-recovery', 'g2p', 'loss', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('t5_80_1m_per', 'g2p-recovery', 'g2p_per', 'score', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('t5_80_1m_per_most', 'g2p-recovery', 'g2p_per', 'loss', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('ml_dense', 'minilm-recovery', 'sciq_retrieval', 'dense', 'sparsegpt/layer 50%'),
    ('ml_70', 'minilm-recovery', 'sciq_retrieval', 'score', 'sparsegpt/layer 70%'),
    ('ml_70_trained', 'minilm-recovery', 'sciq_retrieval', 'score', 'sparsegpt/layer 70%, then distill tokens=400000 length=256 rate=0.0003'),
    ('ml_70_most', 'minilm-recovery', 'sciq_retrieval', 'loss', 'sparsegpt/layer 70%, then distill tokens=400000 length=256 rate=0.0003'),
    ('ml_80', 'minilm-recovery', 'sciq_retrieval', 'score', 'sparsegpt/layer 80%'),
    ('ml_80_trained', 'minilm-recovery', 'sciq_retrieval', 'score', 'sparsegpt/layer 80%, then distill tokens=400000 length=256 rate=0.0003'),
    ('ml_dense_sst2', 'minilm-recovery', 'sst2_probe', 'dense', 'sparsegpt/layer 50%'),
    ('ml_70_sst2', 'minilm-recovery', 'sst2_probe', 'score', 'sparsegpt/layer 70%'),
    ('ml_70_trained_sst2', 'minilm-recovery', 'sst2_probe', 'score', 'sparsegpt/layer 70%, then distill tokens=400000 length=256 rate=0.0003')
) AS asked(key, manifest, task, what, recipe) USING (manifest, task, recipe)
UNION ALL SELECT 'answers_dense_f1', format('{:.2f}', any_value(dense_score)) FROM answered WHERE task = 'squad_f1'
UNION ALL
SELECT key, format('{:.0f}%', 100 * retained)
FROM answered
JOIN (VALUES
    ('answers_50_hellaswag', 'sparsegpt/layer 50% propagate=dense', 'hellaswag'),
    ('answers_50_squad_f1', 'sparsegpt/layer 50% propagate=dense', 'squad_f1')
) AS asked(key, recipe, task) USING (recipe, task)
UNION ALL
SELECT key, said
FROM answer
JOIN (VALUES
    ('g2p_int4_skill', 'g2p-t5', 'skill', 'int4'),
    ('g2p_int4_file', 'g2p-t5', 'file', 'int4'),
    ('g2p_distilled_skill', 'g2p-t5', 'skill', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('g2p_distilled_file', 'g2p-t5', 'file', 'magnitude/layer 80%, then distill g2p-words.jsonl length=64 batch=64 rate=0.001'),
    ('minilm_q8_skill', 'minilm-l6', 'skill', 'gguf Q8_0'),
    ('minilm_q8_file', 'minilm-l6', 'file', 'gguf Q8_0'),
    ('minilm_int8_skill', 'minilm-l6', 'skill', 'int8'),
    ('minilm_int8_file', 'minilm-l6', 'file', 'int8'),
    ('minilm_zeros_skill', 'minilm-l6', 'skill', 'sparsegpt/layer 50%'),
    ('minilm_zeros_file', 'minilm-l6', 'file', 'sparsegpt/layer 50%'),
    ('coder_int4_skill', 'qwen2.5-coder-1.5b', 'skill', 'int4'),
    ('coder_int4_request', 'qwen2.5-coder-1.5b', 'request', 'int4'),
    ('coder_q4_request', 'qwen2.5-coder-1.5b', 'request', 'gguf Q4_K_M'),
    ('coder_q4_ratio', 'qwen2.5-coder-1.5b', 'ratio', 'gguf Q4_K_M'),
    ('coder_q4_file', 'qwen2.5-coder-1.5b', 'file', 'gguf Q4_K_M'),
    ('coder_zeros_skill', 'qwen2.5-coder-1.5b', 'skill', 'wanda/row 30% propagate=dense'),
    ('coder_zeros_ratio', 'qwen2.5-coder-1.5b', 'ratio', 'wanda/row 30% propagate=dense'),
    ('coder_zeros_request', 'qwen2.5-coder-1.5b', 'request', 'wanda/row 30% propagate=dense'),
    ('smol_int8_request', 'smollm2-135m', 'request', 'int8'),
    ('smol_int8_skill', 'smollm2-135m', 'skill', 'int8'),
    ('smol_int8_ratio', 'smollm2-135m', 'ratio', 'int8'),
    ('smol_int8_file', 'smollm2-135m', 'file', 'int8'),
    ('smol_q4_request', 'smollm2-135m', 'request', 'gguf Q4_K_M'),
    ('smol_q4_ratio', 'smollm2-135m', 'ratio', 'gguf Q4_K_M'),
    ('smol_q4_file', 'smollm2-135m', 'file', 'gguf Q4_K_M'),
    ('mpnet_gptq_skill', 'mpnet-base', 'skill', 'int4 rounding=gptq'),
    ('mpnet_gptq_file', 'mpnet-base', 'file', 'int4 rounding=gptq')
) AS asked(key, model, what, recipe) USING (model, what, recipe)
UNION ALL
SELECT asked.key, format('{:.3f}', any_value(score))
FROM results
JOIN (VALUES
    ('mpnet_dense_passage', 'mpnet', 'dense', 'sciq_retrieval'),
    ('mpnet_dense_sentiment', 'mpnet', 'dense', 'sst2_probe'),
    ('mpnet_int8_passage', 'mpnet', 'int8', 'sciq_retrieval'),
    ('mpnet_int8_sentiment', 'mpnet', 'int8', 'sst2_probe'),
    ('mpnet_int4_32_passage', 'mpnet', 'int4 group=32', 'sciq_retrieval'),
    ('mpnet_int4_32_sentiment', 'mpnet', 'int4 group=32', 'sst2_probe'),
    ('mpnet_int4_passage', 'mpnet', 'int4', 'sciq_retrieval'),
    ('mpnet_int4_sentiment', 'mpnet', 'int4', 'sst2_probe'),
    ('mpnet_int4_128_passage', 'mpnet', 'int4 group=128', 'sciq_retrieval'),
    ('mpnet_int4_128_sentiment', 'mpnet', 'int4 group=128', 'sst2_probe'),
    ('mpnet_gptq_passage', 'mpnet', 'int4 rounding=gptq', 'sciq_retrieval'),
    ('mpnet_gptq_sentiment', 'mpnet', 'int4 rounding=gptq', 'sst2_probe'),
    ('mpnet_sparsegpt_50_passage', 'mpnet', 'sparsegpt/layer 50%', 'sciq_retrieval'),
    ('mpnet_sparsegpt_50_sentiment', 'mpnet', 'sparsegpt/layer 50%', 'sst2_probe'),
    ('mpnet_wanda_50_passage', 'mpnet', 'wanda/row 50%', 'sciq_retrieval'),
    ('mpnet_wanda_50_sentiment', 'mpnet', 'wanda/row 50%', 'sst2_probe'),
    ('mpnet_magnitude_50_passage', 'mpnet', 'magnitude/layer 50%', 'sciq_retrieval'),
    ('mpnet_magnitude_50_sentiment', 'mpnet', 'magnitude/layer 50%', 'sst2_probe'),
    ('gemma_dense_passage', 'embeddinggemma', 'dense', 'sciq_retrieval'),
    ('gemma_dense_sentiment', 'embeddinggemma', 'dense', 'sst2_probe'),
    ('gemma_int8_passage', 'embeddinggemma', 'int8', 'sciq_retrieval'),
    ('gemma_int8_sentiment', 'embeddinggemma', 'int8', 'sst2_probe'),
    ('gemma_int4_passage', 'embeddinggemma', 'int4', 'sciq_retrieval'),
    ('gemma_int4_sentiment', 'embeddinggemma', 'int4', 'sst2_probe'),
    ('gemma_gptq_passage', 'embeddinggemma', 'int4 rounding=gptq', 'sciq_retrieval'),
    ('gemma_gptq_sentiment', 'embeddinggemma', 'int4 rounding=gptq', 'sst2_probe'),
    ('gemma_sparsegpt_50_passage', 'embeddinggemma', 'sparsegpt/layer 50%', 'sciq_retrieval'),
    ('gemma_sparsegpt_50_sentiment', 'embeddinggemma', 'sparsegpt/layer 50%', 'sst2_probe'),
    ('gemma_wanda_50_passage', 'embeddinggemma', 'wanda/row 50%', 'sciq_retrieval'),
    ('gemma_wanda_50_sentiment', 'embeddinggemma', 'wanda/row 50%', 'sst2_probe'),
    ('gemma_magnitude_50_passage', 'embeddinggemma', 'magnitude/layer 50%', 'sciq_retrieval'),
    ('gemma_magnitude_50_sentiment', 'embeddinggemma', 'magnitude/layer 50%', 'sst2_probe'),
    ('mpnet_distilled_50_passage', 'mpnet', 'sparsegpt/layer 50%, then distill tokens=100000 length=256 precision=bfloat16', 'sciq_retrieval'),
    ('mpnet_distilled_50_sentiment', 'mpnet', 'sparsegpt/layer 50%, then distill tokens=100000 length=256 precision=bfloat16', 'sst2_probe'),
    ('gemma_distilled_50_passage', 'embeddinggemma', 'sparsegpt/layer 50%, then distill tokens=100000 length=256 precision=bfloat16', 'sciq_retrieval'),
    ('gemma_distilled_50_sentiment', 'embeddinggemma', 'sparsegpt/layer 50%, then distill tokens=100000 length=256 precision=bfloat16', 'sst2_probe'),
    ('mpnet_distilled_70_passage', 'mpnet', 'sparsegpt/layer 70%, then distill tokens=100000 length=256 precision=bfloat16', 'sciq_retrieval'),
    ('mpnet_distilled_70_sentiment', 'mpnet', 'sparsegpt/layer 70%, then distill tokens=100000 length=256 precision=bfloat16', 'sst2_probe'),
    ('mpnet_sparsegpt_70_passage', 'mpnet', 'sparsegpt/layer 70%', 'sciq_retrieval'),
    ('mpnet_sparsegpt_70_sentiment', 'mpnet', 'sparsegpt/layer 70%', 'sst2_probe'),
    ('mpnet_neurons_passage', 'mpnet', 'taylor/neurons to 0.8 of parameters', 'sciq_retrieval'),
    ('mpnet_neurons_sentiment', 'mpnet', 'taylor/neurons to 0.8 of parameters', 'sst2_probe'),
    ('mpnet_neurons_distilled_passage', 'mpnet', 'taylor/neurons to 0.8 of parameters, then distill tokens=100000 length=256 precision=bfloat16', 'sciq_retrieval'),
    ('mpnet_neurons_distilled_sentiment', 'mpnet', 'taylor/neurons to 0.8 of parameters, then distill tokens=100000 length=256 precision=bfloat16', 'sst2_probe'),
    ('mpnet_block_passage', 'mpnet', 'sleb -1 blocks', 'sciq_retrieval'),
    ('mpnet_block_sentiment', 'mpnet', 'sleb -1 blocks', 'sst2_probe'),
    ('mpnet_blocks_passage', 'mpnet', 'sleb -2 blocks', 'sciq_retrieval'),
    ('mpnet_blocks_sentiment', 'mpnet', 'sleb -2 blocks', 'sst2_probe'),
    ('mpnet_trimmed_passage', 'mpnet', 'trim data-00000-of-00001.arrow field=passage', 'sciq_retrieval'),
    ('mpnet_trimmed_sentiment', 'mpnet', 'trim data-00000-of-00001.arrow field=passage', 'sst2_probe'),
    ('gemma_trimmed_passage', 'embeddinggemma', 'trim data-00000-of-00001.arrow field=passage', 'sciq_retrieval'),
    ('gemma_trimmed_sentiment', 'embeddinggemma', 'trim data-00000-of-00001.arrow field=passage', 'sst2_probe'),
    ('gemma_neurons_passage', 'embeddinggemma', 'taylor/neurons to 0.8 of parameters', 'sciq_retrieval'),
    ('gemma_neurons_sentiment', 'embeddinggemma', 'taylor/neurons to 0.8 of parameters', 'sst2_probe')
) AS asked(key, manifest, recipe, task) USING (manifest, recipe, task)
GROUP BY ALL
