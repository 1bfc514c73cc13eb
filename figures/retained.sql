-- title: Retained: what is left of the dense model's skill
-- about: the same as score, with chance at 0 and the dense model at 100%, so that benchmarks compare
-- kind: line
-- x: sparsity
-- y: retained
-- low: retained_low
-- high: retained_high
-- series: line
-- place: place
-- facet: panel
-- bound: bound
-- reference: zero = chance; one = dense
-- columns: 2
-- xscale: sparsity
-- yscale: percent
-- xlabel: sparsity of the prunable weights, %
-- ylabel: retained, %
-- note: (score - chance) / (dense score - chance). Whiskers: 95% intervals of that ratio, paired by document. Tasks on which the dense model itself is not above chance are left out.
-- boundnote: Grey: random masks, which know nothing: where they retain much, the benchmark does not see the damage.

SELECT sparsity, retained, retained_low, retained_high, 0 AS zero, 1 AS one, line, bound, place, panel
FROM curves
WHERE NOT resized AND retained IS NOT NULL
ORDER BY panel, bound, line, sparsity;
