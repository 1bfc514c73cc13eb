CREATE OR REPLACE VIEW outputs AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.recipe, c.method, c.granularity, c.pattern, c.sparsity, c.seed,
       o.side, o.block, o.own, o.error, c.record_id
FROM _cells c
JOIN base.outputs o USING (record_id);

COMMENT ON VIEW outputs IS 'how far what each block of a variant gives is from the dense model''s, on the same text';
COMMENT ON COLUMN outputs.block IS 'index of the transformer block';
COMMENT ON COLUMN outputs.own IS 'mean over tokens of the length of the difference over that of the dense block''s output, where both blocks read what the dense one reads';
COMMENT ON COLUMN outputs.error IS 'the same where each block reads what its own model''s earlier blocks give: the error of all blocks up to this one';
