-- The calibration texts that methods looked at.
SELECT DISTINCT calibration FROM results WHERE calibration <> '' /* manifests */ ORDER BY calibration
