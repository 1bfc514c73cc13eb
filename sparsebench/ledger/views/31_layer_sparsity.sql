CREATE OR REPLACE VIEW layer_sparsity AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed, c.allocation,
       t.side, t.layer, count(*) AS tensors, sum(t.count)::BIGINT AS params, sum(t.zeros)::BIGINT AS zeros,
       sum(t.zeros) / sum(t.count) AS achieved
FROM _cells c
JOIN base.making_tensors t USING (record_id)
GROUP BY ALL;

COMMENT ON VIEW layer_sparsity IS 'sparsity of each transformer block of a variant, counted in the written files';
COMMENT ON COLUMN layer_sparsity.tensors IS 'pruned tensors in the block';
COMMENT ON COLUMN layer_sparsity.params IS 'weights of these tensors';
COMMENT ON COLUMN layer_sparsity.zeros IS 'of these weights, those that are exactly zero';
COMMENT ON COLUMN layer_sparsity.achieved IS 'zeros / params';
