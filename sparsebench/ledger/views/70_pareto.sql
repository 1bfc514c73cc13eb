CREATE OR REPLACE VIEW pareto AS
WITH priced AS (
    UNPIVOT (
        SELECT manifest, variant_id, model, family, weights, method, granularity, pattern, sparsity, seed, task, metric, higher_is_better, score,
               n, limited, num_fewshot, workload, engine, ranks, machine, coalesce(bytes_packed, bytes_dense)::DOUBLE AS bytes, prefill_ms,
               decode_ms, peak_bytes::DOUBLE AS peak_bytes
        FROM results
        WHERE task IS NOT NULL
    ) ON bytes, prefill_ms, decode_ms, peak_bytes INTO NAME cost VALUE price
)
SELECT p.*, NOT EXISTS (
           FROM priced o
           WHERE o.manifest = p.manifest AND o.model = p.model AND o.task = p.task AND o.metric = p.metric AND o.cost = p.cost
             AND o.n = p.n AND o.num_fewshot IS NOT DISTINCT FROM p.num_fewshot
             AND (o.machine IS NOT DISTINCT FROM p.machine OR p.cost = 'bytes') AND o.price <= p.price
             AND _goodness(o.score, o.higher_is_better) >= _goodness(p.score, p.higher_is_better)
             AND (_goodness(o.score, o.higher_is_better) > _goodness(p.score, p.higher_is_better) OR o.price < p.price)) AS on_front
FROM priced p;

COMMENT ON VIEW pareto IS 'score against each cost, one row per variant, task and cost; on_front marks variants that no other beats on both';
COMMENT ON COLUMN pareto.metric IS 'metric, as in scores';
COMMENT ON COLUMN pareto.score IS 'the metric''s value';
COMMENT ON COLUMN pareto.num_fewshot IS 'examples in the prompt; NULL is the task''s default';
COMMENT ON COLUMN pareto.limited IS 'true where the task has more documents than were scored';
COMMENT ON COLUMN pareto.engine IS 'the manifest''s first engine';
COMMENT ON COLUMN pareto.ranks IS 'the manifest''s first number of ranks';
COMMENT ON COLUMN pareto.cost IS 'bytes (packed where there is a packed size, else dense), prefill_ms, decode_ms or peak_bytes';
COMMENT ON COLUMN pareto.price IS 'the cost, in the unit its name gives';
COMMENT ON COLUMN pareto.on_front IS 'true where no variant of the same model is as good and cheaper, or better and as cheap';
