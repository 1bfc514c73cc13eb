-- title: Score against sparsity
-- about: how much of a benchmark's score is left, method by method
-- kind: line
-- x: sparsity
-- y: score
-- low: low
-- high: high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- apart: apart
-- reference: chance = chance; dense = dense
-- columns: 2
-- xscale: sparsity
-- xlabel: sparsity of the prunable weights, %
-- ylabel: score
-- note: Whiskers: 95% intervals over documents (0/1 outcomes: Wilson; else bootstrap). The point at 0% is the dense model. N:M patterns are points. Only pruned models are shown, each method as first calibrated (docs/results.md).
-- boundnote: Grey: random masks, the baseline.

SELECT sparsity, score, low, high, chance, dense, line, bound, place, panel, apart
FROM _pruned_curves
-- Perplexity explodes and has a figure of its own; a task on which dense itself is not above chance shows nothing.
WHERE scale <> 'perplexity' AND panel NOT IN (SELECT panel FROM curves WHERE method = 'dense' AND if(higher_is_better, low <= chance, high >= chance))
ORDER BY panel, bound, line, sparsity;
