-- Where the numbers come from: machines, libraries, the state of the code.
SELECT e.machine, e.python, e.libraries, e.git_commit, e.git_dirty, count(*) AS records, min(r.started_at)::DATE AS first_day,
       max(r.started_at)::DATE AS last_day, max(r.load) AS load
FROM base.records r
JOIN base.environments e USING (environment_id)
WHERE r.status = 'done' /* manifests */
GROUP BY ALL
ORDER BY records DESC, e.machine, e.git_commit
