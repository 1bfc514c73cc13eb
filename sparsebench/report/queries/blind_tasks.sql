-- Tasks on which the dense model is not shown to be better than one without skill, and the recipe of that model.
SELECT DISTINCT s.model, s.weights, s.task, s.metric, s.score, s.low, f.floor, f.recipe, f.models
FROM scores s
JOIN base.variants v USING (variant_id)
JOIN floors f ON (f.source, f.revision, f.family, f.dtype, f.task, f.metric, f.settings) = (v.source, v.revision, v.family,
    v.dtype, s.task, s.metric, _same(s.settings))
WHERE s.method = 'dense' AND f.separable IS false /* manifests */
ORDER BY s.model, s.task
