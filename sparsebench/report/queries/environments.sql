-- Where the numbers come from: machines, libraries, the state of the code.
SELECT e.machine, concat(machine_label(e.machine), regexp_extract(e.machine, ' ×.*')) AS processor, e.python, e.libraries,
       count(*) AS records, min(r.started_at)::DATE AS first_day, max(r.started_at)::DATE AS last_day,
       max(r.load) AS load, list(DISTINCT left(e.git_commit, 12) || if(e.git_dirty, ' (with changes)', '')
                                 ORDER BY left(e.git_commit, 12) || if(e.git_dirty, ' (with changes)', ''))
                            FILTER (length(e.git_commit) = 40) AS commits
FROM base.records r
JOIN base.environments e USING (environment_id)
WHERE r.status = 'done' /* manifests */
GROUP BY e.machine, processor, e.python, e.libraries
ORDER BY records DESC, e.machine, e.libraries
