-- +goose Up
-- Signed statements that explain what would otherwise look like tampering: days that retention dropped, versions of the
-- schema, accepted restores. They form a chain, whose end is in every checkpoint. There is about one a day, and retention
-- does not drop them.
CREATE TABLE audit_statements (
    number    bigint PRIMARY KEY,
    kind      text COLLATE "C" NOT NULL,
    noted_at  timestamptz NOT NULL,
    statement text NOT NULL
);
COMMENT ON TABLE audit_statements IS 'Signed statements of the recorders and of operators: days that retention dropped, versions of the schema, accepted restores. docs/audit.md explains how they are verified.';
COMMENT ON COLUMN audit_statements.number IS 'Number of the statement, starting at 1, without gaps.';
COMMENT ON COLUMN audit_statements.kind IS 'rows_dropped, schema_seen or restore_accepted.';
COMMENT ON COLUMN audit_statements.noted_at IS 'When it was signed, by the clock of its signer.';
COMMENT ON COLUMN audit_statements.statement IS 'The statement as one line of JSON, whose last member is an Ed25519 signature. Verification uses this column only.';

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION batchyard_grant_roles() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    schema_name  text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass);
    views  text := 'task_timeline, stuck_tasks, task_ages, retries, device_history, device_availability, usage_by_day, stage_latency, '
                || 'stage_latency_by_hour, job_progress, callback_failures, batch_sizes, user_actions, submissions, refusals';
    given  text[];
    missing text[] := '{}';
    f      record;
BEGIN
    -- Anyone who may create functions in this schema could shadow a built-in one, and our functions would call it with
    -- the rights of the owner. Databases created before Postgres 15 allow that to everyone.
    IF has_schema_privilege('public', schema_name, 'CREATE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', schema_name);
    END IF;
    -- Functions that run with the rights of the owner are not for everyone.
    FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = schema_name::regnamespace AND p.proname LIKE 'batchyard\_%'
        AND p.proname NOT IN ('batchyard_bucket', 'batchyard_bucket_ms', 'batchyard_source') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name);
    END LOOP;
    FOREACH given SLICE 1 IN ARRAY ARRAY[
        ['batchyard_recorder', 'INSERT', 'audit_log'],
        ['batchyard_recorder', 'SELECT (time)', 'audit_log_default'], -- to report rows that should not be there
        ['batchyard_recorder', 'SELECT, INSERT, UPDATE', 'tasks, jobs, stream_offsets, audit_chains, rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions'],
        ['batchyard_recorder', 'SELECT, INSERT', 'results, callbacks, stream_breaks, audit_statements'],
        ['batchyard_recorder', 'UPDATE (resolved_at)', 'stream_breaks'],
        ['batchyard_recorder', 'SELECT', 'audit_dropped, batchyard_schema, job_progress'],
        ['batchyard_callbacks', 'SELECT, UPDATE', 'callbacks'],
        ['batchyard_callbacks', 'SELECT', 'results, batchyard_schema'],
        ['batchyard_api', 'SELECT', 'tasks, results, jobs, batchyard_schema, ' || views],
        ['batchyard_auditor', 'SELECT', 'audit_log, audit_chains, audit_dropped, audit_statements, tasks, results, jobs, callbacks, stream_offsets, stream_breaks, batchyard_schema, '
            || 'rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions, ' || views],
        ['batchyard_reader', 'SELECT', views]
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = given[1]) THEN
            missing := missing || given[1];
            CONTINUE;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', schema_name, given[1]);
        EXECUTE format('GRANT %s ON %s TO %I', given[2], given[3], given[1]);
    END LOOP;
    -- The recorder owns no table: functions that can do this and nothing more manage the partitions for it.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batchyard_recorder') THEN
        FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = schema_name::regnamespace AND p.prosecdef AND p.proname LIKE 'batchyard\_%' LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO batchyard_recorder', f.name);
        END LOOP;
    END IF;
    RETURN ARRAY(SELECT DISTINCT m FROM unnest(missing) m ORDER BY 1);
END
$$;
-- +goose StatementEnd

SELECT batchyard_grant_roles();

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION batchyard_grant_roles() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    schema_name  text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass);
    views  text := 'task_timeline, stuck_tasks, task_ages, retries, device_history, device_availability, usage_by_day, stage_latency, '
                || 'stage_latency_by_hour, job_progress, callback_failures, batch_sizes, user_actions, submissions, refusals';
    given  text[];
    missing text[] := '{}';
    f      record;
BEGIN
    -- Anyone who may create functions in this schema could shadow a built-in one, and our functions would call it with
    -- the rights of the owner. Databases created before Postgres 15 allow that to everyone.
    IF has_schema_privilege('public', schema_name, 'CREATE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', schema_name);
    END IF;
    -- Functions that run with the rights of the owner are not for everyone.
    FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = schema_name::regnamespace AND p.proname LIKE 'batchyard\_%'
        AND p.proname NOT IN ('batchyard_bucket', 'batchyard_bucket_ms', 'batchyard_source') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name);
    END LOOP;
    FOREACH given SLICE 1 IN ARRAY ARRAY[
        ['batchyard_recorder', 'INSERT', 'audit_log'],
        ['batchyard_recorder', 'SELECT (time)', 'audit_log_default'], -- to report rows that should not be there
        ['batchyard_recorder', 'SELECT, INSERT, UPDATE', 'tasks, jobs, stream_offsets, audit_chains, rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions'],
        ['batchyard_recorder', 'SELECT, INSERT', 'results, callbacks, stream_breaks'],
        ['batchyard_recorder', 'UPDATE (resolved_at)', 'stream_breaks'],
        ['batchyard_recorder', 'SELECT', 'audit_dropped, batchyard_schema, job_progress'],
        ['batchyard_callbacks', 'SELECT, UPDATE', 'callbacks'],
        ['batchyard_callbacks', 'SELECT', 'results, batchyard_schema'],
        ['batchyard_api', 'SELECT', 'tasks, results, jobs, batchyard_schema, ' || views],
        ['batchyard_auditor', 'SELECT', 'audit_log, audit_chains, audit_dropped, tasks, results, jobs, callbacks, stream_offsets, stream_breaks, batchyard_schema, '
            || 'rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions, ' || views],
        ['batchyard_reader', 'SELECT', views]
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = given[1]) THEN
            missing := missing || given[1];
            CONTINUE;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', schema_name, given[1]);
        EXECUTE format('GRANT %s ON %s TO %I', given[2], given[3], given[1]);
    END LOOP;
    -- The recorder owns no table: functions that can do this and nothing more manage the partitions for it.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batchyard_recorder') THEN
        FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = schema_name::regnamespace AND p.prosecdef AND p.proname LIKE 'batchyard\_%' LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO batchyard_recorder', f.name);
        END LOOP;
    END IF;
    RETURN ARRAY(SELECT DISTINCT m FROM unnest(missing) m ORDER BY 1);
END
$$;
-- +goose StatementEnd
DROP TABLE audit_statements;
