-- The precision of calculations that the manifest named for each of the variants $ids, where it named one.
SELECT variant_id, any_value(settings ->> 'compute_dtype')
FROM cells
WHERE variant_id IN (SELECT unnest($ids::VARCHAR[])) AND stage IN ('make', 'benchmarks')
GROUP BY variant_id
HAVING count(settings ->> 'compute_dtype') > 0;
