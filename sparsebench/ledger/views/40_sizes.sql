CREATE OR REPLACE VIEW sizes AS
WITH stored AS (
    SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
           c.dtype, z.format, z.bytes, z.bytes - (1 - coalesce(m.read_share, 1)) * z.prunable_bytes AS read_bytes,
           z.prunable_bytes, t.unprunable_bytes, t.raw_value_bound, t.entropy_bound,
           -- Smaller shapes and integers are compared with the dense model, not with their own dense format.
           coalesce(max(z.bytes) FILTER (z.format = 'dense' AND c.method = 'dense') OVER one_model,
                    max(z.bytes) FILTER (z.format = 'dense') OVER one_variant) AS dense_bytes,
           coalesce(max(z.prunable_bytes) FILTER (z.format = 'dense' AND c.method = 'dense') OVER one_model,
                    max(z.prunable_bytes) FILTER (z.format = 'dense') OVER one_variant) AS dense_prunable_bytes,
           max(z.bytes) FILTER (c.method = 'dense') OVER one_format AS unpruned_bytes,
           t.prunable, t.nonzero, t.folder_bytes, z.seconds, z.round_trip, c.record_id
    FROM _cells c
    JOIN base.storage t USING (record_id)
    JOIN base.sizes z USING (record_id)
    LEFT JOIN (SELECT variant_id, read_share FROM variants) m USING (variant_id)
    WINDOW one_variant AS (PARTITION BY c.manifest, c.record_id),
           one_model AS (PARTITION BY c.manifest, c.model),
           one_format AS (PARTITION BY c.manifest, c.model, z.format)
)
SELECT * EXCLUDE (dense_bytes, dense_prunable_bytes, record_id), bytes / dense_bytes AS share,
       prunable_bytes / dense_prunable_bytes AS prunable_share, raw_value_bound / dense_prunable_bytes AS raw_value_share,
       entropy_bound / dense_prunable_bytes AS entropy_share, record_id
FROM stored;

COMMENT ON VIEW sizes IS 'bytes on disk, one row per variant and storage format, with the bounds that no format can beat';
COMMENT ON COLUMN sizes.format IS 'dense (safetensors, zeros stored), packed (bitmask or gap-coded per tensor), archive (packed, in byte planes under zstd), a plugin''s, or source: the unpruned model''s own file as it was fetched; a GGUF variant has its file''s size in every format';
COMMENT ON COLUMN sizes.bytes IS 'weight files in this format, headers included, bytes';
COMMENT ON COLUMN sizes.read_bytes IS 'of these bytes, those that one token reads: all but the prunable weights that skip or moefy leaves unread (variants.read_share), which count as large as the others';
COMMENT ON COLUMN sizes.prunable_bytes IS 'the prunable tensors alone, bytes';
COMMENT ON COLUMN sizes.unprunable_bytes IS 'all other tensors, stored dense, bytes';
COMMENT ON COLUMN sizes.raw_value_bound IS 'least bytes for the prunable tensors when values are taken as incompressible: H(s) n / 8 + non-zeros x bytes each';
COMMENT ON COLUMN sizes.entropy_bound IS 'the same with the empirical entropy of the values, bytes';
COMMENT ON COLUMN sizes.unpruned_bytes IS 'the unpruned model in the same format, bytes, which shows what the format saves without zeros; NULL where it was not measured';
COMMENT ON COLUMN sizes.prunable IS 'prunable weights';
COMMENT ON COLUMN sizes.nonzero IS 'prunable weights that are not +0.0';
COMMENT ON COLUMN sizes.folder_bytes IS 'whole model folder, tokenizer and configuration included, bytes';
COMMENT ON COLUMN sizes.seconds IS 'time to write the format, s; 0 for a format that is not written, such as dense';
COMMENT ON COLUMN sizes.round_trip IS 'true where every tensor came back bit for bit; NULL where nothing was written';
COMMENT ON COLUMN sizes.share IS 'bytes / bytes of the dense model in the dense format; where the dense model was not measured, / the variant''s own in that format';
COMMENT ON COLUMN sizes.prunable_share IS 'the same over the prunable tensors';
COMMENT ON COLUMN sizes.raw_value_share IS 'raw_value_bound / dense bytes of the prunable tensors';
COMMENT ON COLUMN sizes.entropy_share IS 'entropy_bound / dense bytes of the prunable tensors';
