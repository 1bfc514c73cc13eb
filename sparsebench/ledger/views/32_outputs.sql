CREATE OR REPLACE VIEW outputs AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.recipe, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       o.side, o.block, o.own, o.error, c.record_id
FROM _cells c
JOIN base.outputs o USING (record_id);

COMMENT ON VIEW outputs IS 'distance of each block''s output from the dense model''s, on the same text';
COMMENT ON COLUMN outputs.block IS 'index of the transformer block';
COMMENT ON COLUMN outputs.own IS 'error of this block alone: mean over tokens of the length of the difference / the length of the dense block''s output, where both blocks read the dense model''s inputs';
COMMENT ON COLUMN outputs.error IS 'the same where each block reads the output of its own model''s earlier blocks: the error of all blocks up to this one';
