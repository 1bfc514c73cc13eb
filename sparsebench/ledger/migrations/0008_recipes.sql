-- A variant is a recipe: its steps stand in a table of their own. What was one method with its settings is one step.
ALTER TABLE base.variants ADD COLUMN recipe VARCHAR;
ALTER TABLE base.variants ADD COLUMN beside VARCHAR;
ALTER TABLE base.variants ADD COLUMN parent VARCHAR;
UPDATE base.variants SET beside = '', recipe = CASE WHEN method = 'dense' THEN 'dense' ELSE
    concat_ws(' ', method || if(coalesce(allocation, 'uniform') = 'uniform', '', '+' || allocation) || '/' || granularity,
              nullif(pattern, 'unstructured'), format('{:g}%', round(100 * sparsity, 6)), if(propagate = 'dense', 'propagate=dense', NULL)) END;

CREATE TABLE base.steps (
    variant_id VARCHAR NOT NULL, position INTEGER NOT NULL, step VARCHAR NOT NULL, name VARCHAR NOT NULL, field VARCHAR, value JSON);
INSERT INTO base.steps
SELECT variant_id, 1, 'prune', method, unnest(['sparsity', 'granularity', 'pattern', 'allocation']),
       unnest([to_json(sparsity), to_json(granularity), to_json(pattern), to_json(coalesce(allocation, 'uniform'))])
FROM base.variants WHERE method <> 'dense';
INSERT INTO base.steps
SELECT variant_id, 1, 'prune', method, 'propagate', to_json(propagate) FROM base.variants WHERE propagate <> '';

-- The making of a variant was called after the one thing that was done.
ALTER TABLE base.sparsify RENAME TO makings;
ALTER TABLE base.sparsify_tensors RENAME TO making_tensors;
ALTER TABLE base.makings ADD COLUMN bits DOUBLE;
ALTER TABLE base.makings ADD COLUMN rounded_to_zero BIGINT;
ALTER TABLE base.makings ADD COLUMN relative_error DOUBLE;
UPDATE base.records SET stage = 'make' WHERE stage = 'sparsify';
UPDATE base.manifest_cells SET stage = 'make', label = 'make' WHERE stage = 'sparsify';

-- What was asked is the cell's; on what it was answered, and on which weights, is the record's. A model is called as its manifest calls it.
ALTER TABLE base.records ADD COLUMN key VARCHAR;
ALTER TABLE base.records ADD COLUMN place VARCHAR;
ALTER TABLE base.records ADD COLUMN device VARCHAR;
ALTER TABLE base.records ADD COLUMN cuda VARCHAR;
ALTER TABLE base.records ADD COLUMN calculated VARCHAR;
ALTER TABLE base.records ADD COLUMN content VARCHAR;
UPDATE base.records SET key = cell_id, place = '', content = '';
ALTER TABLE base.manifest_cells ADD COLUMN model VARCHAR;
