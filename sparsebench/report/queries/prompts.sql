-- How fast a prompt is read by what passes the quality gate, over the fastest dense engine, where most engines ran; the fastest first.
-- `gains`: more than chance.
SELECT model, weights, variant, engine, workload, nullif(regexp_extract(workload, '^b1 p(\d+)', 1), '')::INTEGER AS tokens, prompt,
       prompt > 1 AND prompt_shown NOT LIKE '%?%' AS gains
FROM {costs}
WHERE widest AND passes AND NOT plain AND kind <> 'dense' AND prompt IS NOT NULL AND token IS NOT NULL
ORDER BY prompt DESC, model, variant, engine
