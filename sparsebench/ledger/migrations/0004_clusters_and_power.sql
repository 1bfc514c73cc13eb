-- Documents that share a context, what a comparison could have detected, and how much of the dense model's skill is left.
ALTER TABLE base.outcomes ADD COLUMN cluster VARCHAR;
ALTER TABLE base.comparisons ADD COLUMN clusters INTEGER;
ALTER TABLE base.comparisons ADD COLUMN detectable DOUBLE;
ALTER TABLE base.comparisons ADD COLUMN recovery DOUBLE;
ALTER TABLE base.comparisons ADD COLUMN recovery_low DOUBLE;
ALTER TABLE base.comparisons ADD COLUMN recovery_high DOUBLE;
-- Both are computed again from the outcomes, by the formulas of this version.
DELETE FROM base.intervals;
DELETE FROM base.comparisons;
