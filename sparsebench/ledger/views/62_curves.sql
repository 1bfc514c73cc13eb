-- The training of a variant: the tokens that its last step reads, and how the loss falls.
CREATE OR REPLACE VIEW training_curves AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.recipe, c.sparsity, p.step, p.tokens, p.loss, p.held_out
FROM _cells c
JOIN base.curves p USING (record_id)
ORDER BY c.manifest, c.model, c.recipe, p.step;

COMMENT ON VIEW training_curves IS 'the loss during every training of a whole model, one row per evaluation';
COMMENT ON COLUMN training_curves.recipe IS 'all steps of the variant; the last is the training';
COMMENT ON COLUMN training_curves.step IS 'optimizer steps so far';
COMMENT ON COLUMN training_curves.tokens IS 'tokens trained on so far, every epoch counted';
COMMENT ON COLUMN training_curves.loss IS 'mean loss of the steps since the row before; NULL at the beginning';
COMMENT ON COLUMN training_curves.held_out IS 'loss on the held-out samples, by which the best weights are chosen';
