-- title: Loss while a whole model is trained
-- about: the loss over the tokens read, on trained and on held-out samples
-- kind: line
-- x: tokens
-- y: loss
-- series: line
-- place: place
-- facet: panel
-- columns: 2
-- xlabel: thousands of tokens that it was trained on
-- ylabel: loss (lower is better)
-- note: Held out: samples that are not trained on, by which the best weights are chosen. Trained on: the mean over the steps since the point before.

SELECT concat(model, chr(10), recipe) AS panel, tokens / 1000 AS tokens, unnest([held_out, loss]) AS loss, unnest(['held out', 'trained on']) AS line,
       unnest([0, 1]) AS place
FROM training_curves
WHERE loss IS NOT NULL OR step = 0
ORDER BY panel, place, tokens;
