SELECT format, max(bytes) FILTER (variant_id = $a) AS a, max(bytes) FILTER (variant_id = $b) AS b, b / a AS ratio
FROM sizes
WHERE variant_id IN ($a, $b)
GROUP BY format
HAVING a IS NOT NULL AND b IS NOT NULL
ORDER BY format <> 'dense', format <> 'packed', format;
