-- Each record that does not count because another of its cell does, in a line.
SELECT format('{} · {}: {} [{}] counts, not {} [{}]', concat_ws(' ', model, recipe), concat_ws(' ', stage, nullif(label, '')), coalesce(counts, '?'),
              if(counts_own, 'made here', coalesce(nullif(counts_origin, ''), 'of unknown origin')), says,
              coalesce(nullif(origin, ''), 'of unknown origin'))
FROM conflicts;
