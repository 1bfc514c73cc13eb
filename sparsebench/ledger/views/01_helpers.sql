-- Building blocks of the public views; names with an underscore are not part of the interface.

-- `b1 p128 g16`: one request's batch, prompt tokens and new tokens; with ` on 2 nodes` where its ranks ran on
-- several, and ` beside other jobs` where other jobs ran on other GPUs meanwhile.
CREATE OR REPLACE MACRO _workload(settings) AS
    format('b{} p{} g{}', settings ->> '$.workload.batch', settings ->> '$.workload.prompt', settings ->> '$.workload.generate')
    || coalesce(format(' on {} nodes', settings ->> '$.nodes'), '')
    || if((settings ->> '$.alone') = 'device', ' beside other jobs', '');

-- Settings that compare equal whatever the order of their keys.
CREATE OR REPLACE MACRO _same(settings) AS list_sort(map_entries(from_json(settings, '"MAP(VARCHAR, JSON)"')))::VARCHAR;

-- A score, or a difference between two, turned so that more is better.
CREATE OR REPLACE MACRO _goodness(score, higher_is_better) AS if(higher_is_better, score, -score);

-- The better of two scores, such as chance and a measured floor. One that is NULL does not count.
CREATE OR REPLACE MACRO _better(score, other, higher_is_better) AS if(higher_is_better, greatest(score, other), least(score, other));

-- What a step does to a model, in a word.
CREATE OR REPLACE MACRO _kind(step) AS
    CASE step WHEN 'prune' THEN 'zeros' WHEN 'quantize' THEN 'bits' WHEN 'shrink' THEN 'smaller shapes' WHEN 'trim' THEN 'vocabulary'
         WHEN 'recover' THEN 'recovery' WHEN 'skip' THEN 'skipped inputs' WHEN 'moefy' THEN 'experts' ELSE step END;

-- The colour and the mark in figures (places in figures/style.py), whatever else is drawn: of a kind of recipe, and of a method of pruning.
-- Zeros, bits, smaller shapes and their chains have marks of their own: what fails the gate has no colour.
CREATE OR REPLACE MACRO _kind_place(kind) AS
    CASE kind WHEN 'zeros' THEN 0 WHEN 'zeros + recovery' THEN 2 WHEN 'bits' THEN 5 WHEN 'as fetched' THEN 6 WHEN 'bits + skipped inputs' THEN 7
              WHEN 'zeros + recovery + bits' THEN 8 WHEN 'smaller shapes' THEN 9 WHEN 'skipped inputs' THEN 10 WHEN 'zeros + bits' THEN 11
              WHEN 'dense' THEN 12 WHEN 'experts' THEN 13 WHEN 'smaller shapes + recovery' THEN 14 ELSE 15 END;
CREATE OR REPLACE MACRO _method_place(method) AS coalesce(list_position(['magnitude', 'sparsegpt', 'wanda', 'alps'], method), 5) - 1;

-- An engine as figures name it.
CREATE OR REPLACE MACRO _engine_word(engine) AS CASE engine WHEN 'sparse' THEN 'ours' WHEN 'hf' THEN 'torch'
    WHEN 'llamacpp' THEN 'llama.cpp' ELSE engine END;

-- Whether all that ran was a kernel that reads every weight, zeros too.
CREATE OR REPLACE MACRO _dense_kernel(kernel) AS coalesce(kernel, '') LIKE 'dense%';

-- Two metrics of the same answers are one benchmark: g2p and g2p_per, squad and squad_f1.
CREATE OR REPLACE MACRO _benchmark(task) AS regexp_replace(task, '[_-](macro_f1|f1|per)$', '');

-- The share of a normal distribution within `threshold` standard deviations of its mean: erf(t / sqrt 2), by Abramowitz and Stegun's
-- formula 7.1.26 (good to 1.5e-7) and, below 0.03, by the first terms of the series.
CREATE OR REPLACE MACRO normal_share(threshold) AS
    CASE WHEN threshold < 0.03 THEN sqrt(2 / pi()) * (threshold - threshold ** 3 / 6)
         ELSE 1 - exp(-(threshold ** 2) / 2) * list_reduce([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0],
                  lambda sum, term: sum / (1 + 0.3275911 * threshold / sqrt(2)) + term) END;

-- How figures and the report name a model and a method; random and dequantized weights are always marked.
CREATE OR REPLACE MACRO model_label(model, weights) AS
    model || CASE weights WHEN 'random' THEN ' (random weights)' WHEN 'dequantized' THEN ' (dequantized)' ELSE '' END;
CREATE OR REPLACE MACRO method_label(method, granularity, pattern) AS
    concat_ws(' ', concat_ws('/', method, nullif(if(pattern LIKE '%:%', '', granularity), '')), nullif(pattern, 'unstructured'));
-- `Zen 5, AVX-512 BF16` of `AMD EPYC (AVX-512 BF16, model 26.2) ×2, 23 GiB`, else `AVX2, model 6.94`: what tells processors apart in a title.
-- AMD's family 26 is Zen 5; of 25 the server models to 15 are Zen 3, those from 16 to 31 Zen 4.
CREATE OR REPLACE MACRO machine_label(machine) AS
    coalesce(if(machine LIKE 'AMD EPYC%',
                nullif(concat(CASE WHEN machine LIKE '%, model 26.%' THEN 'Zen 5, '
                    WHEN regexp_matches(machine, ', model 25\.(1[6-9]|2\d|3[01])\)') THEN 'Zen 4, '
                                   WHEN regexp_matches(machine, ', model 25\.(\d|1[0-5])\)') THEN 'Zen 3, ' END,
                              regexp_extract(machine, '\(([^)]*?)(, model [\d.]+)?\) ×', 1)), ''), NULL),
             nullif(regexp_extract(machine, '\(([^)]*)\) ×', 1), ''), trim(regexp_extract(machine, '^[^×]*')));
-- `1×128+16 tokens` of `b1 p128 g16`: sequences at once, prompt tokens, new tokens.
CREATE OR REPLACE MACRO workload_label(workload) AS regexp_replace(workload, '^b(\d+) p(\d+) g(\d+)', '\1×\2+\3 tokens');
CREATE OR REPLACE MACRO engine_label(engine, ranks) AS concat(engine, ' ×' || ranks);
CREATE OR REPLACE MACRO percent_label(share) AS format('{:g}', round(100 * share, 2));
-- `low to high`, or one number where both look the same in this format; NULL without numbers.
CREATE OR REPLACE MACRO range_label(digits, low, high) AS if(format(digits, low) = format(digits, high), format(digits, low),
    format(digits, low) || ' to ' || format(digits, high));

-- The weights that count for a variant: those of this workspace's first result, else of the first result to arrive. Another machine may
-- round differently when it makes the variant. The time of a record is not used: clocks are wrong at times.
CREATE OR REPLACE VIEW _contents AS
SELECT variant_id, arg_min(content, (status <> 'done', NOT own, rowid)) AS content FROM base.records WHERE content <> '' GROUP BY variant_id;

-- Every record with its maker: NULL is this workspace. Of a cell, or of times and memory a cell and place (`scope`), one maker counts: this
-- workspace, else that of the first result to arrive.
CREATE OR REPLACE VIEW _made AS
SELECT *, rowid AS arrived, if(own, NULL, origin) AS maker, if(stage IN ('latency', 'memory'), place, '') AS scope FROM base.records;

-- The record of each cell and `place`, of the weights that count and chosen by that rule; of one maker's, a record with a result counts
-- before one without, then the last to arrive. `counts`: whether its maker is the one that counts for the cell.
CREATE OR REPLACE VIEW _latest AS
SELECT r.*, maker IS NOT DISTINCT FROM first_value(maker) OVER (PARTITION BY cell_id, scope
           ORDER BY r.status <> 'done', NOT own, arrived) AS counts
FROM _made r
LEFT JOIN _contents c USING (variant_id)
WHERE coalesce(r.content, '') IN ('', coalesce(c.content, ''))
QUALIFY maker IS NOT DISTINCT FROM first_value(maker) OVER (PARTITION BY cell_id, place ORDER BY r.status <> 'done', NOT own, arrived)
    AND row_number() OVER (PARTITION BY cell_id, place, maker ORDER BY r.status <> 'done', arrived DESC) = 1;

CREATE OR REPLACE VIEW _counted AS FROM _latest WHERE counts;

-- Models without skill, which measure the score that a task gives without any. Only `floors` shows them.
CREATE OR REPLACE VIEW _without_skill AS SELECT DISTINCT variant_id FROM base.steps WHERE step = 'floor';

-- The best such model on each task, and whether the dense model is shown to be better than all of them.
CREATE OR REPLACE VIEW _floors AS
SELECT v.source, v.revision, v.family, v.dtype, s.task, s.metric, _same(r.settings) AS settings,
       arg_max(s.score, _goodness(s.score, coalesce(m.higher_is_better, true))) AS floor,
       arg_max(v.recipe, _goodness(s.score, coalesce(m.higher_is_better, true))) AS recipe,
       count(DISTINCT variant_id) AS models,
       bool_and(if(coalesce(m.higher_is_better, true), c.high < 0, c.low > 0)) AS separable
FROM base.scores s
JOIN _counted r USING (record_id)
JOIN base.variants v USING (variant_id)
JOIN _without_skill USING (variant_id)
LEFT JOIN metrics m USING (metric)
-- A comparison with a dense score that was measured again since no longer counts.
LEFT JOIN (SELECT c.* FROM base.comparisons c JOIN _counted d ON d.record_id = c.dense_record_id) c USING (record_id)
GROUP BY ALL;

-- The cells of each manifest: those of each maker's newest plan on each machine; where there is no plan, those it has recorded. What this
-- workspace's plan says of a cell counts before what others say.
CREATE OR REPLACE VIEW _members AS
WITH newest AS (
    SELECT plan_id, manifest, own
    FROM base.plans
    QUALIFY row_number() OVER (PARTITION BY manifest, machine, if(own, NULL, origin) ORDER BY started_at DESC, plan_id) = 1
), planned AS (
    SELECT manifest, cell_id, position, stage, label, variant_id, model, settings, own
    FROM base.manifest_cells
    JOIN newest USING (plan_id)
    QUALIFY row_number() OVER (PARTITION BY manifest, cell_id ORDER BY NOT own, position, plan_id) = 1
)
FROM planned
UNION ALL
SELECT manifest, cell_id, (row_number() OVER (PARTITION BY manifest ORDER BY min(started_at), cell_id))::INTEGER, any_value(stage),
       any_value(stage), any_value(variant_id), NULL, any_value(settings), bool_or(own)
FROM _counted
WHERE manifest NOT IN (SELECT manifest FROM newest)
GROUP BY manifest, cell_id;

-- The sparsity counted in a variant whose settings give none: its masks come from a file, or a later step keeps earlier zeros. Zeros by
-- rounding are not pruned.
CREATE OR REPLACE VIEW _given AS
SELECT variant_id, any_value((zeros - coalesce(rounded_to_zero, 0)) / prunable) AS given
FROM base.variants v
JOIN _counted USING (variant_id)
JOIN base.makings USING (record_id)
WHERE v.sparsity IS NULL
GROUP BY variant_id;

-- Every cell of every manifest with its variant and its records, one per place. `choice` is 1 for the record that counts. Times and memory
-- count per place. Of all else one record counts, of the maker that counts: the manifest's own before another manifest's, then the last to arrive.
CREATE OR REPLACE VIEW _measured AS
SELECT m.manifest, m.position, m.cell_id, m.stage, m.label, m.settings,
       v.* REPLACE (v.method || CASE WHEN v.allocation <> 'uniform' THEN '+' || v.allocation ELSE '' END AS method,
                    coalesce(m.model, v.model) AS model, coalesce(v.sparsity, g.given) AS sparsity), r.record_id, r.place,
                        r.status, r.reason, r.started_at,
       r.seconds, r.origin, e.machine, row_number() OVER (PARTITION BY m.manifest, m.cell_id, if(m.stage IN ('latency', 'memory'), r.place, NULL)
                                                ORDER BY r.status <> 'done', NOT r.counts, r.manifest <> m.manifest, r.arrived DESC) AS choice
FROM _members m
JOIN base.variants v USING (variant_id)
LEFT JOIN _given g USING (variant_id)
-- A record of another variant, or of other settings than the plan's, is not of the plan's cell, whatever id it gives.
LEFT JOIN _latest r ON r.cell_id = m.cell_id AND r.variant_id = m.variant_id AND r.settings IS NOT DISTINCT FROM m.settings
LEFT JOIN base.environments e USING (environment_id);

-- Every cell of every manifest with its variant and, where it has one, the record that counts.
CREATE OR REPLACE VIEW _cells AS SELECT * EXCLUDE (choice) FROM _measured WHERE choice = 1;

-- The first engine, ranks, workload and number format that each manifest names for a model.
CREATE OR REPLACE VIEW _first_runtime AS
SELECT manifest, coalesce(m.model, v.model) AS model, arg_min(settings ->> '$.engine', (NOT m.own, position)) AS engine,
       arg_min((settings ->> '$.ranks')::INTEGER, (NOT m.own, position)) AS ranks,
       arg_min(_workload(settings), (NOT m.own, position)) AS workload,
       arg_min(coalesce(settings ->> '$.dtype', ''), (NOT m.own, position)) AS asked
FROM _members m
JOIN base.variants v USING (variant_id)
WHERE stage IN ('latency', 'memory')
GROUP BY ALL;

-- Columns that many views share are explained once; `inherit_comments.sql` copies these comments.
COMMENT ON COLUMN _cells.manifest IS 'name of the experiment file';
COMMENT ON COLUMN _cells.variant_id IS 'fingerprint of the weights: same id, same weights';
COMMENT ON COLUMN _cells.model IS 'name of the model in the manifest';
COMMENT ON COLUMN _cells.family IS 'encoder, decoder or encoder-decoder';
COMMENT ON COLUMN _cells.source IS 'where the checkpoint comes from';
COMMENT ON COLUMN _cells.revision IS 'commit or hash of the checkpoint';
COMMENT ON COLUMN _cells.weights IS 'real, dequantized (the quantizer causes a part of the near-zero shares) or random (a rehearsal: only time, memory and size have a meaning)';
COMMENT ON COLUMN _cells.dtype IS 'precision asked for; auto is the checkpoint''s';
COMMENT ON COLUMN _cells.recipe IS 'the steps in words, in order, such as sparsegpt/layer 50%, then int8; dense is the untouched model';
COMMENT ON COLUMN _cells.beside IS 'the rest of the recipe, in words: what the columns of the last pruning step do not say, and the other steps; empty where there is nothing more';
COMMENT ON COLUMN _cells.parent IS 'variant_id of the variant that it was made from; NULL for the dense model';
COMMENT ON COLUMN _cells.method IS 'method of the last pruning step, with its allocation where that is not uniform (wanda+owl), else name of the last step; dense for the dense model';
COMMENT ON COLUMN _cells.granularity IS 'scope in which weights compete: global, layer (their matrix) or row; empty for dense';
COMMENT ON COLUMN _cells.pattern IS 'unstructured, N:M (N kept of every M along the input), or blocks of rows x columns';
COMMENT ON COLUMN _cells.sparsity IS 'sparsity of the prunable weights that was asked for after the last pruning step, 0 to 1; for masks from a file, the counted share of zeros; 0 without a pruning step';
COMMENT ON COLUMN _cells.seed IS 'seed of the method; for random weights, of the weights';
COMMENT ON COLUMN _cells.calibration IS 'text, length and seed of the calibration; empty where no step uses any';
COMMENT ON COLUMN _cells.allocation IS 'how the sparsity is spread over the transformer blocks: uniform or owl';
COMMENT ON COLUMN _cells.propagate IS 'activations that a calibrated method saw: pruned (behind its own pruned blocks) or dense (the dense model''s); empty without calibration';
COMMENT ON COLUMN _cells.cell_id IS 'fingerprint of the cell: same id, same result';
COMMENT ON COLUMN _cells.stage IS 'make, structure, storage, outputs, benchmarks, latency or memory';
COMMENT ON COLUMN _cells.label IS 'what the cell measures, in a few words';
COMMENT ON COLUMN _cells.position IS 'position of the cell in the manifest''s plan';
COMMENT ON COLUMN _cells.settings IS 'the cell''s settings, resolved (JSON)';
COMMENT ON COLUMN _cells.status IS 'done, failed, unsupported, skipped; missing where there is no record yet';
COMMENT ON COLUMN _cells.reason IS 'why a cell is not done';
COMMENT ON COLUMN _cells.started_at IS 'start of the cell, UTC';
COMMENT ON COLUMN _cells.seconds IS 'wall time of the cell, s';
COMMENT ON COLUMN _cells.origin IS 'workspace that made the record: its random id, published for the committed records, empty where the record does not say it';
COMMENT ON COLUMN _cells.machine IS 'class of hardware on which the cell ran';
COMMENT ON COLUMN _cells.record_id IS 'key of the base tables';
