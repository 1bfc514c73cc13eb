SELECT value, label FROM base.outcomes WHERE record_id = $record_id ORDER BY position;
