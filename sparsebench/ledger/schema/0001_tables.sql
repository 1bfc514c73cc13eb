-- Append-only base tables. No keys, indexes or ENUMs: `ingest` keeps rows unique. What a person reads are the views.
CREATE SCHEMA base;

-- One row: how many files of `ledger/schema/` made this file, and a digest of the views that it was last given.
CREATE TABLE base.version (number INTEGER NOT NULL, views VARCHAR NOT NULL);

-- What was asked is the cell's (`key`, `settings`); on what it was answered, and on which weights (`content`), is the record's. `own`: made
-- in this workspace. `digest`: of what the record says.
CREATE TABLE base.records (
    record_id VARCHAR NOT NULL, cell_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
    manifest VARCHAR NOT NULL, variant_id VARCHAR NOT NULL, settings JSON, versions JSON, environment_id VARCHAR, load DOUBLE,
    available_bytes BIGINT, started_at TIMESTAMP NOT NULL, seconds DOUBLE, format INTEGER NOT NULL, threads INTEGER,
    key VARCHAR, place VARCHAR, device VARCHAR, cuda VARCHAR, calculated VARCHAR, content VARCHAR, origin VARCHAR, own BOOLEAN,
    digest VARCHAR);

-- A variant is a recipe. Masks from a file name no sparsity: it is what they give.
CREATE TABLE base.variants (
    variant_id VARCHAR NOT NULL, model VARCHAR NOT NULL, family VARCHAR NOT NULL, source VARCHAR, revision VARCHAR,
    weights VARCHAR, dtype VARCHAR, method VARCHAR NOT NULL, granularity VARCHAR, pattern VARCHAR, sparsity DOUBLE, seed BIGINT,
    calibration VARCHAR, allocation VARCHAR, propagate VARCHAR, recipe VARCHAR, beside VARCHAR, parent VARCHAR, own BOOLEAN);

CREATE TABLE base.steps (
    variant_id VARCHAR NOT NULL, position INTEGER NOT NULL, step VARCHAR NOT NULL, name VARCHAR NOT NULL, field VARCHAR,
    value JSON);

CREATE TABLE base.environments (
    environment_id VARCHAR NOT NULL, machine VARCHAR, platform VARCHAR, cpu VARCHAR, cores INTEGER, memory_bytes BIGINT,
    gpus VARCHAR[], python VARCHAR, libraries JSON, git_commit VARCHAR, git_dirty BOOLEAN);

CREATE TABLE base.plans (
    plan_id VARCHAR NOT NULL, manifest VARCHAR NOT NULL, machine VARCHAR NOT NULL, started_at TIMESTAMP NOT NULL,
    origin VARCHAR, own BOOLEAN, digest VARCHAR);

-- A model is called as this manifest calls it.
CREATE TABLE base.manifest_cells (
    plan_id VARCHAR NOT NULL, position INTEGER NOT NULL, cell_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, label VARCHAR,
    variant_id VARCHAR, settings JSON, model VARCHAR);

-- Zeros that a step was given (`already_zero`) are counted beside those that it made. `trained_tokens` counts every epoch. `joules` are
-- those of the machine's own counters; `energy_source` names them, or says why there is none.
CREATE TABLE base.makings (
    record_id VARCHAR NOT NULL, prunable BIGINT, zeros BIGINT, parameters BIGINT, total_zeros BIGINT, achieved DOUBLE,
    achieved_all DOUBLE, seconds DOUBLE, sweep_size INTEGER, peak_rss_bytes BIGINT, note VARCHAR, calibration_tokens BIGINT,
    calibration_sha256 VARCHAR, bits DOUBLE, rounded_to_zero BIGINT, relative_error DOUBLE, already_zero BIGINT,
    trained_tokens BIGINT, operations DOUBLE, read_share DOUBLE, joules DOUBLE, energy_source VARCHAR);

CREATE TABLE base.making_tensors (
    record_id VARCHAR NOT NULL, name VARCHAR NOT NULL, layer INTEGER, side VARCHAR, kind VARCHAR, count BIGINT, zeros BIGINT);

-- How a training went.
CREATE TABLE base.curves (record_id VARCHAR NOT NULL, step BIGINT, tokens BIGINT, loss DOUBLE, held_out DOUBLE);

-- What calibration text showed where values or neurons are left out: how many are near zero, how evenly experts are used, and what share of
-- co-activation lies inside them.
CREATE TABLE base.activity (
    record_id VARCHAR NOT NULL, side VARCHAR, layer INTEGER, module VARCHAR, near_zero DOUBLE, threshold DOUBLE, skipped DOUBLE,
    uses DOUBLE[], together DOUBLE, inside DOUBLE);

CREATE TABLE base.scores (
    record_id VARCHAR NOT NULL, task VARCHAR NOT NULL, metric VARCHAR NOT NULL, score DOUBLE, stderr DOUBLE, n INTEGER,
    limited BOOLEAN, chance DOUBLE, protocol JSON);

-- Documents that share a context have one `cluster`.
CREATE TABLE base.outcomes (
    record_id VARCHAR NOT NULL, position INTEGER NOT NULL, doc_id VARCHAR NOT NULL, doc_hash VARCHAR, value DOUBLE,
    label DOUBLE, cluster VARCHAR);

-- Both are computed from outcomes; `method` names the interval and the test.
CREATE TABLE base.intervals (record_id VARCHAR NOT NULL, low DOUBLE, high DOUBLE, method VARCHAR);

CREATE TABLE base.comparisons (
    record_id VARCHAR NOT NULL, dense_record_id VARCHAR NOT NULL, n INTEGER NOT NULL, difference DOUBLE, low DOUBLE,
    high DOUBLE, p DOUBLE, gained INTEGER, lost INTEGER, method VARCHAR, higher_is_better BOOLEAN, clusters INTEGER,
    detectable DOUBLE, retained DOUBLE, retained_low DOUBLE, retained_high DOUBLE, loss_at_most DOUBLE, chance DOUBLE);

CREATE TABLE base.structure (
    record_id VARCHAR NOT NULL, absolute DOUBLE[], relative DOUBLE[], edges DOUBLE[], operations_token DOUBLE);

CREATE TABLE base.structure_tensors (
    record_id VARCHAR NOT NULL, name VARCHAR NOT NULL, layer INTEGER, side VARCHAR, kind VARCHAR, prunable BOOLEAN,
    dtype VARCHAR, shape BIGINT[], count BIGINT, zeros BIGINT, below_absolute BIGINT[], below_relative BIGINT[], mean DOUBLE,
    std DOUBLE, rms DOUBLE, kurtosis DOUBLE, min DOUBLE, max DOUBLE, histogram BIGINT[]);

-- How far each block of a variant is from the dense model's, by what it gives.
CREATE TABLE base.outputs (record_id VARCHAR NOT NULL, side VARCHAR, block INTEGER, own DOUBLE, error DOUBLE);

CREATE TABLE base.storage (
    record_id VARCHAR NOT NULL, prunable BIGINT, nonzero BIGINT, raw_value_bound DOUBLE, entropy_bound DOUBLE,
    unprunable_bytes BIGINT, folder_bytes BIGINT);

CREATE TABLE base.sizes (
    record_id VARCHAR NOT NULL, format VARCHAR, bytes BIGINT, prunable_bytes BIGINT, seconds DOUBLE, round_trip BOOLEAN);

-- `placement` is what decides where models lie, `stolen` the time that other virtual machines took.
CREATE TABLE base.latency (
    record_id VARCHAR NOT NULL, engine VARCHAR, kernel VARCHAR, ranks INTEGER, threads INTEGER, device VARCHAR, dtype VARCHAR,
    baseline VARCHAR, parity_l2 DOUBLE, parity_tolerance DOUBLE, parity_dtype VARCHAR, parity_blocks INTEGER,
    wraps_only BOOLEAN, load_before DOUBLE, load_after DOUBLE, affinity INTEGER, governor VARCHAR, notes VARCHAR[],
    mhz_before DOUBLE, mhz_after DOUBLE, energy_source VARCHAR, placement VARCHAR, stolen DOUBLE);

CREATE TABLE base.latency_phases (
    record_id VARCHAR NOT NULL, phase VARCHAR, side VARCHAR, median_s DOUBLE, low_s DOUBLE, high_s DOUBLE, mad_s DOUBLE,
    n INTEGER, steady BOOLEAN, cpu_s DOUBLE, p90_s DOUBLE, energy_j DOUBLE);

CREATE TABLE base.latency_samples (
    record_id VARCHAR NOT NULL, phase VARCHAR, side VARCHAR, block INTEGER, index INTEGER, wall_s DOUBLE, cpu_s DOUBLE,
    process INTEGER);

CREATE TABLE base.latency_differences (
    record_id VARCHAR NOT NULL, phase VARCHAR, ratio DOUBLE, low DOUBLE, high DOUBLE, pairs INTEGER, processes INTEGER,
    within_sd DOUBLE, between_sd DOUBLE);

CREATE TABLE base.memory (
    record_id VARCHAR NOT NULL, engine VARCHAR, kernel VARCHAR, ranks INTEGER, threads INTEGER, device VARCHAR, dtype VARCHAR,
    source VARCHAR, peak_bytes BIGINT, parity_l2 DOUBLE, wraps_only BOOLEAN, load_before DOUBLE, load_after DOUBLE,
    notes VARCHAR[]);

CREATE TABLE base.memory_phases (record_id VARCHAR NOT NULL, phase VARCHAR, peak_bytes BIGINT);

-- `cuda_process_bytes`: what the rank's process holds on its GPU, which torch's own figures do not count whole.
CREATE TABLE base.memory_ranks (
    record_id VARCHAR NOT NULL, rank INTEGER, phase VARCHAR, peak_rss_bytes BIGINT, peak_bytes BIGINT, anon_bytes BIGINT,
    pss_bytes BIGINT, tensor_bytes BIGINT, baseline_bytes BIGINT, cuda_allocated_bytes BIGINT, cuda_reserved_bytes BIGINT,
    cuda_process_bytes BIGINT, cache_bytes BIGINT);
