-- How the training of a variant went: what its last step reads and how the loss falls.
CREATE OR REPLACE VIEW training_curves AS
SELECT c.manifest, c.variant_id, c.model, c.family, c.recipe, c.sparsity, p.step, p.tokens, p.loss, p.held_out
FROM _cells c
JOIN base.curves p USING (record_id)
ORDER BY c.manifest, c.model, c.recipe, p.step;

COMMENT ON VIEW training_curves IS 'the loss of every training of a whole model, one row each time that it was looked at';
COMMENT ON COLUMN training_curves.recipe IS 'all that was done to the model; the last step is the training';
COMMENT ON COLUMN training_curves.step IS 'optimizer steps until then';
COMMENT ON COLUMN training_curves.tokens IS 'tokens that it was trained on until then, every epoch counted';
COMMENT ON COLUMN training_curves.loss IS 'mean loss of the steps since the row before; NULL at the beginning';
COMMENT ON COLUMN training_curves.held_out IS 'loss on the samples that are not trained on, by which the best weights are chosen';
