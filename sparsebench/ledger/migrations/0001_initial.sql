-- Append-only base tables. No keys, indexes or ENUMs: they block migrations; `ingest` keeps rows unique.
-- What a person reads are the views; these tables may change with any migration.
CREATE SCHEMA base;

CREATE TABLE base.migrations (number INTEGER NOT NULL, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL);
CREATE TABLE base.issued_views (digest VARCHAR NOT NULL);

CREATE TABLE base.records (
    record_id VARCHAR NOT NULL, cell_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
    manifest VARCHAR NOT NULL, variant_id VARCHAR NOT NULL, settings JSON, versions JSON, environment_id VARCHAR,
    load DOUBLE, available_bytes BIGINT, started_at TIMESTAMP NOT NULL, seconds DOUBLE, format INTEGER NOT NULL);

CREATE TABLE base.variants (
    variant_id VARCHAR NOT NULL, model VARCHAR NOT NULL, family VARCHAR NOT NULL, source VARCHAR, revision VARCHAR,
    weights VARCHAR, dtype VARCHAR, method VARCHAR NOT NULL, granularity VARCHAR, pattern VARCHAR, sparsity DOUBLE NOT NULL,
    seed BIGINT, calibration VARCHAR);

CREATE TABLE base.environments (
    environment_id VARCHAR NOT NULL, machine VARCHAR, platform VARCHAR, cpu VARCHAR, cores INTEGER, memory_bytes BIGINT,
    gpus VARCHAR[], python VARCHAR, libraries JSON, git_commit VARCHAR, git_dirty BOOLEAN, threads INTEGER);

CREATE TABLE base.plans (
    plan_id VARCHAR NOT NULL, manifest VARCHAR NOT NULL, machine VARCHAR NOT NULL, started_at TIMESTAMP NOT NULL);

CREATE TABLE base.manifest_cells (
    plan_id VARCHAR NOT NULL, position INTEGER NOT NULL, cell_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, label VARCHAR,
    variant_id VARCHAR, settings JSON);

CREATE TABLE base.sparsify (
    record_id VARCHAR NOT NULL, prunable BIGINT, zeros BIGINT, parameters BIGINT, total_zeros BIGINT, achieved DOUBLE,
    achieved_all DOUBLE, seconds DOUBLE, sweep_size INTEGER, peak_rss_bytes BIGINT, note VARCHAR);

CREATE TABLE base.sparsify_tensors (
    record_id VARCHAR NOT NULL, name VARCHAR NOT NULL, layer INTEGER, side VARCHAR, kind VARCHAR, count BIGINT, zeros BIGINT);

CREATE TABLE base.scores (
    record_id VARCHAR NOT NULL, task VARCHAR NOT NULL, metric VARCHAR NOT NULL, score DOUBLE, stderr DOUBLE, n INTEGER,
    limited BOOLEAN, chance DOUBLE, protocol JSON);

CREATE TABLE base.outcomes (
    record_id VARCHAR NOT NULL, position INTEGER NOT NULL, doc_id VARCHAR NOT NULL, doc_hash VARCHAR, value DOUBLE, label DOUBLE);

-- Computed from outcomes when both sides are there; `method` names the interval and the test.
CREATE TABLE base.intervals (record_id VARCHAR NOT NULL, low DOUBLE, high DOUBLE, method VARCHAR);

CREATE TABLE base.comparisons (
    record_id VARCHAR NOT NULL, dense_record_id VARCHAR NOT NULL, n INTEGER NOT NULL, difference DOUBLE, low DOUBLE,
    high DOUBLE, p DOUBLE, gained INTEGER, lost INTEGER, method VARCHAR, higher_is_better BOOLEAN);

CREATE TABLE base.structure (record_id VARCHAR NOT NULL, absolute DOUBLE[], relative DOUBLE[], edges DOUBLE[]);

CREATE TABLE base.structure_tensors (
    record_id VARCHAR NOT NULL, name VARCHAR NOT NULL, layer INTEGER, side VARCHAR, kind VARCHAR, prunable BOOLEAN,
    dtype VARCHAR, shape BIGINT[], count BIGINT, zeros BIGINT, below_absolute BIGINT[], below_relative BIGINT[],
    mean DOUBLE, std DOUBLE, rms DOUBLE, kurtosis DOUBLE, min DOUBLE, max DOUBLE, histogram BIGINT[]);

CREATE TABLE base.storage (
    record_id VARCHAR NOT NULL, prunable BIGINT, nonzero BIGINT, raw_value_bound DOUBLE, entropy_bound DOUBLE,
    unprunable_bytes BIGINT, folder_bytes BIGINT);

CREATE TABLE base.sizes (
    record_id VARCHAR NOT NULL, format VARCHAR, bytes BIGINT, prunable_bytes BIGINT, seconds DOUBLE, round_trip BOOLEAN);

CREATE TABLE base.latency (
    record_id VARCHAR NOT NULL, engine VARCHAR, kernel VARCHAR, ranks INTEGER, threads INTEGER, device VARCHAR, dtype VARCHAR,
    baseline VARCHAR, parity_l2 DOUBLE, parity_tolerance DOUBLE, parity_dtype VARCHAR, parity_blocks INTEGER,
    wraps_only BOOLEAN, load_before DOUBLE, load_after DOUBLE, affinity INTEGER, governor VARCHAR, notes VARCHAR[]);

CREATE TABLE base.latency_phases (
    record_id VARCHAR NOT NULL, phase VARCHAR, side VARCHAR, median_s DOUBLE, low_s DOUBLE, high_s DOUBLE, mad_s DOUBLE,
    n INTEGER, steady BOOLEAN, cpu_s DOUBLE, p90_s DOUBLE);

CREATE TABLE base.latency_samples (
    record_id VARCHAR NOT NULL, phase VARCHAR, side VARCHAR, block INTEGER, index INTEGER, wall_s DOUBLE, cpu_s DOUBLE);

CREATE TABLE base.latency_differences (
    record_id VARCHAR NOT NULL, phase VARCHAR, ratio DOUBLE, low DOUBLE, high DOUBLE, pairs INTEGER);

CREATE TABLE base.memory (
    record_id VARCHAR NOT NULL, engine VARCHAR, kernel VARCHAR, ranks INTEGER, threads INTEGER, device VARCHAR, dtype VARCHAR,
    source VARCHAR, peak_bytes BIGINT, parity_l2 DOUBLE, wraps_only BOOLEAN, load_before DOUBLE, load_after DOUBLE,
    notes VARCHAR[]);

CREATE TABLE base.memory_phases (record_id VARCHAR NOT NULL, phase VARCHAR, peak_bytes BIGINT);

CREATE TABLE base.memory_ranks (
    record_id VARCHAR NOT NULL, rank INTEGER, phase VARCHAR, peak_rss_bytes BIGINT, peak_bytes BIGINT, anon_bytes BIGINT,
    pss_bytes BIGINT, tensor_bytes BIGINT, baseline_bytes BIGINT, cuda_allocated_bytes BIGINT, cuda_reserved_bytes BIGINT);
