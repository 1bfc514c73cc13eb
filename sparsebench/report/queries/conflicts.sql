-- Records that say otherwise than the record of the same cell that counts: whose each is, and what both say.
SELECT model, recipe, concat_ws(' ', stage, nullif(label, '')) AS what, counts,
       if(counts_own, 'this ledger''s', coalesce(nullif(counts_origin, ''), 'unknown')) AS counts_maker,
       says, coalesce(nullif(origin, ''), 'unknown') AS maker, machine, counts_machine
FROM conflicts
WHERE true /* manifests */
ORDER BY ALL
