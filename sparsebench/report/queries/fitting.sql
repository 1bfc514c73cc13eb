-- Fewer bits that pass the quality gate, by their peak of memory over dense's: the two lowest.
SELECT variant, list(peak ORDER BY peak) AS peaks, list(DISTINCT model ORDER BY model) AS models
FROM {costs}
WHERE kind = 'bits' AND passes AND peak IS NOT NULL AND variant NOT LIKE '% %'
GROUP BY variant
ORDER BY min(peak), variant
LIMIT 2
