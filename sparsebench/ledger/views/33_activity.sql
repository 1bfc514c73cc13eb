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

COMMENT ON VIEW activity IS 'what calibration text showed of each module where a skip or moefy step leaves something out, as the unchanged model reads the text';
COMMENT ON COLUMN activity.module IS 'the layer whose inputs these are, or the activation function that gives them (cats); of moefy the layer that reads the neurons';
COMMENT ON COLUMN activity.near_zero IS 'share of the values within 1% of their root mean square, 0 to 1, without any threshold';
COMMENT ON COLUMN activity.threshold IS 'magnitude up to which values count as zero; NULL for moefy';
COMMENT ON COLUMN activity.skipped IS 'share of the values up to it; NULL for moefy';
COMMENT ON COLUMN activity.experts IS 'experts that the router chooses from, those that all tokens share left out; NULL for skip';
COMMENT ON COLUMN activity.idlest IS 'share of the tokens that the least chosen of them computes';
COMMENT ON COLUMN activity.busiest IS 'share of the tokens that the most chosen of them computes';
COMMENT ON COLUMN activity.busiest_to_mean IS 'busiest over the mean of all: 1 where all are chosen equally often';
COMMENT ON COLUMN activity.evenness IS 'entropy of how choices fall on experts over its maximum: 1 where all are chosen equally often, 0 where one alone is';
COMMENT ON COLUMN activity.uses IS 'share of the tokens for which each of them is computed, in up to 8,192 tokens';
COMMENT ON COLUMN activity.together IS 'how often two neurons of one expert are active for the same token, over how often any two are: 1 by chance. Active are a token''s largest tenth';
COMMENT ON COLUMN activity.inside IS 'share of the co-activation of all pairs of neurons that lies inside experts, 1 less the cut; that of a pair is how often both are active, over the geometric mean of how often each is';
