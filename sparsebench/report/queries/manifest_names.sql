-- The manifests of this ledger.
SELECT DISTINCT manifest FROM cells ORDER BY manifest
