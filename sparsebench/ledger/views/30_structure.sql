CREATE OR REPLACE VIEW tensors AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       t.name, t.layer, t.side, t.kind, t.prunable, t.dtype, t.shape, t.count, t.zeros, t.zeros / t.count AS zero_share,
       t.mean, t.std, t.rms, t.kurtosis, t.min, t.max, s.absolute, t.below_absolute, s.relative, t.below_relative, s.edges,
       t.histogram, c.record_id
FROM _cells c
JOIN base.structure_tensors t USING (record_id)
JOIN base.structure s USING (record_id);

COMMENT ON VIEW tensors IS 'the weights of each variant tensor by tensor; a tied tensor once';
COMMENT ON COLUMN tensors.name IS 'name in the checkpoint';
COMMENT ON COLUMN tensors.layer IS 'index of the transformer block; NULL outside of blocks';
COMMENT ON COLUMN tensors.side IS 'encoder or decoder; empty where both share the tensor';
COMMENT ON COLUMN tensors.kind IS 'q, k, v, o, kv, qkv (cross_ in cross-attention), gate, up, gate_up, down, router, norm, bias, embedding, head or other';
COMMENT ON COLUMN tensors.prunable IS 'true for linear weights inside transformer blocks';
COMMENT ON COLUMN tensors.dtype IS 'number format of the tensor';
COMMENT ON COLUMN tensors.shape IS 'dimensions';
COMMENT ON COLUMN tensors.count IS 'number of weights';
COMMENT ON COLUMN tensors.zeros IS 'weights that are exactly zero';
COMMENT ON COLUMN tensors.zero_share IS 'zeros / count';
COMMENT ON COLUMN tensors.mean IS 'mean weight';
COMMENT ON COLUMN tensors.std IS 'standard deviation (population)';
COMMENT ON COLUMN tensors.rms IS 'root mean square';
COMMENT ON COLUMN tensors.kurtosis IS 'excess kurtosis: 0 for a normal distribution; NULL where all weights are equal';
COMMENT ON COLUMN tensors.min IS 'smallest weight';
COMMENT ON COLUMN tensors.max IS 'largest weight';
COMMENT ON COLUMN tensors.absolute IS 'thresholds on |w|';
COMMENT ON COLUMN tensors.below_absolute IS 'weights with |w| below each of `absolute`, zeros among them';
COMMENT ON COLUMN tensors.relative IS 'thresholds on |w| / rms';
COMMENT ON COLUMN tensors.below_relative IS 'weights with |w| below each of `relative` times rms, zeros among them';
COMMENT ON COLUMN tensors.edges IS 'edges of the histogram''s bins, log2(|w| / rms)';
COMMENT ON COLUMN tensors.histogram IS 'number of non-zero weights in each of the histogram''s bins: below the first edge, between the edges, from the last edge on';

CREATE OR REPLACE VIEW structure AS
WITH by_threshold AS (
    SELECT * EXCLUDE (relative, below_relative, absolute, below_absolute), 'relative' AS scale,
           unnest(relative) AS threshold, unnest(below_relative) AS near
    FROM tensors
    UNION ALL
    SELECT * EXCLUDE (relative, below_relative, absolute, below_absolute), 'absolute', unnest(absolute), unnest(below_absolute)
    FROM tensors
), scoped AS (
    SELECT *, unnest(CASE WHEN prunable THEN ['all', 'prunable', 'kind', 'layer', 'layer and kind'] ELSE ['all', 'kind'] END)
        AS scope
    FROM by_threshold
)
SELECT manifest, variant_id, model, family, weights, method, granularity, pattern, sparsity, seed, scope,
       CASE WHEN scope NOT IN ('all', 'prunable') THEN scoped.side END AS side,
       CASE WHEN starts_with(scope, 'layer') THEN scoped.layer END AS layer,
       CASE WHEN ends_with(scope, 'kind') THEN scoped.kind END AS kind,
       scale, threshold, count(*) AS tensors, sum(count)::BIGINT AS params, sum(zeros) / sum(count) AS zero_share,
       sum(near) / sum(count) AS near_share, 1 - sum(near) / sum(count) AS far_share
FROM scoped
GROUP BY ALL;

COMMENT ON VIEW structure IS 'what share of the weights is zero, near zero or far from zero: overall, by layer, by kind of module';
COMMENT ON COLUMN structure.scope IS 'all (every tensor), prunable, layer (prunable weights of one block), kind, or layer and kind';
COMMENT ON COLUMN structure.side IS 'encoder or decoder';
COMMENT ON COLUMN structure.layer IS 'index of the transformer block';
COMMENT ON COLUMN structure.kind IS 'kind of module, as in tensors';
COMMENT ON COLUMN structure.scale IS 'relative: threshold in units of each tensor''s root mean square; absolute: on |w|';
COMMENT ON COLUMN structure.threshold IS 'magnitude below which a weight is near zero, in the unit of scale';
COMMENT ON COLUMN structure.tensors IS 'tensors in the group';
COMMENT ON COLUMN structure.params IS 'weights in the group';
COMMENT ON COLUMN structure.zero_share IS 'share that is exactly zero, 0 to 1';
COMMENT ON COLUMN structure.near_share IS 'share with |w| below the threshold, zeros among them, 0 to 1';
COMMENT ON COLUMN structure.far_share IS 'share that is far from zero: 1 - near_share';
