CREATE OR REPLACE VIEW activity AS
WITH shared_out AS (
    SELECT *, [one / nullif(list_sum(uses), 0) FOR one IN uses] AS parts
    FROM base.activity
)
SELECT c.manifest, c.variant_id, c.model, c.family, c.weights, c.recipe, c.seed, a.side, a.layer, a.module, a.near_zero, a.threshold, a.skipped,
       len(a.uses) AS experts, list_min(a.uses) AS idlest, list_max(a.uses) AS busiest, len(a.parts) * list_max(a.parts) AS busiest_to_mean,
       list_sum([CASE WHEN one > 0 THEN -one * ln(one) WHEN one = 0 THEN 0 END FOR one IN a.parts]) / nullif(ln(len(a.parts)), 0) AS evenness,
       a.uses, a.together, a.inside, c.record_id
FROM _cells c
JOIN shared_out a USING (record_id);

COMMENT ON VIEW activity IS 'activations of each module in which a skip or moefy step leaves something out, while the unchanged model reads the calibration text';
COMMENT ON COLUMN activity.module IS 'path of the layer whose inputs these are, or of the activation function that gives them (cats); for moefy, of the layer that reads the neurons';
COMMENT ON COLUMN activity.near_zero IS 'share of the values with a magnitude up to 1% of their root mean square, 0 to 1, whatever the threshold';
COMMENT ON COLUMN activity.threshold IS 'magnitude up to which values count as zero; NULL for moefy';
COMMENT ON COLUMN activity.skipped IS 'share of the values up to the threshold, 0 to 1; NULL for moefy';
COMMENT ON COLUMN activity.experts IS 'number of experts that the router chooses from, without those that all tokens share; NULL for skip';
COMMENT ON COLUMN activity.idlest IS 'share of the tokens that the least chosen expert computes, 0 to 1; NULL for skip';
COMMENT ON COLUMN activity.busiest IS 'share of the tokens that the most chosen expert computes, 0 to 1; NULL for skip';
COMMENT ON COLUMN activity.busiest_to_mean IS 'busiest / the mean of all experts: 1 where all are chosen equally often; NULL for skip';
COMMENT ON COLUMN activity.evenness IS 'entropy of the choices of experts / its maximum: 1 where all are chosen equally often, 0 where only one is; NULL for skip';
COMMENT ON COLUMN activity.uses IS 'share of the tokens for which each expert is computed, over up to 8,192 tokens; NULL for skip';
COMMENT ON COLUMN activity.together IS 'how often two neurons of one expert are active for the same token / how often any two are: 1 by chance; active are a token''s largest tenth; NULL for skip';
COMMENT ON COLUMN activity.inside IS 'share of the co-activation of all pairs of neurons that is inside experts, 1 - the cut; a pair''s co-activation is how often both are active / the geometric mean of how often each is; NULL for skip';
