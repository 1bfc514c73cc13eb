SELECT value, label, cluster FROM base.outcomes WHERE record_id = $record_id ORDER BY position;
