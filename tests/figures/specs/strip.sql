-- title: Every timed step, over the median of the dense model beside it
-- kind: strip
-- x: relative
-- y: label
-- series: engine
-- facet: facet
-- reference: one = median of the dense model
-- xlabel: time of a step / median of the dense model in the same job
SELECT 1
