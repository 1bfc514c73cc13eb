-- title: Recovery: what is left of the skill of the dense model
-- about: the same as score, with chance at 0 and the dense model at 100%, so that benchmarks compare
-- kind: line
-- x: sparsity
-- y: recovery
-- low: recovery_low
-- high: recovery_high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- reference: zero = chance; one = dense
-- columns: 2
-- xscale: sparsity
-- yscale: percent
-- xlabel: sparsity of the prunable weights, %
-- ylabel: recovery, %
-- note: (score - chance) / (dense score - chance). Whiskers: 95% intervals of that ratio, paired by document. Tasks on which the dense model itself is not above chance are left out.
-- boundnote: Grey: random masks, which know nothing: where they recover much, the benchmark does not see the damage.

SELECT sparsity, recovery, recovery_low, recovery_high, 0 AS zero, 1 AS one, line, bound, place, panel
FROM curves
WHERE recovery IS NOT NULL
ORDER BY panel, bound, line, sparsity;
