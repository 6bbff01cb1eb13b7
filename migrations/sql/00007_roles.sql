-- +goose Up
-- Roles without login: grant them to your own logins (docs/sql.md). They belong to the cluster, not to this database, so
-- another database of the cluster may have created them and may use them too.
--
--   batchyard_recorder    the audit stage: inserts into the audit log, but can neither read nor change it
--   batchyard_callbacks   the callbacks stage
--   batchyard_api         the api stage
--   batchyard_auditor     batchyard audit and batchyard ledger: reads everything, changes nothing
--   batchyard_reader      people: reads the views, nothing else
--
-- +goose StatementBegin
DO $$
DECLARE
    r text;
BEGIN
    FOREACH r IN ARRAY ARRAY['batchyard_recorder', 'batchyard_callbacks', 'batchyard_api', 'batchyard_auditor', 'batchyard_reader'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = r);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', r);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- the migration of another database created it at the same time
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the role % is missing, and % may not create it', r, current_user
                    USING HINT = format('Have an administrator run: CREATE ROLE %I NOLOGIN; then run: SELECT batchyard_grant_roles()', r);
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- Grants the roles that exist what they need. The owner of the tables may call it again at any time.
CREATE FUNCTION batchyard_grant_roles() RETURNS text[] LANGUAGE plpgsql AS $$
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
        ['batchyard_recorder', 'SELECT, INSERT, UPDATE', 'tasks, jobs, stream_offsets, audit_chains, audit_tree, audit_checkpoints, rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions'],
        ['batchyard_recorder', 'SELECT, INSERT', 'results, callbacks, stream_breaks, audit_statements'],
        ['batchyard_recorder', 'UPDATE (resolved_at)', 'stream_breaks'],
        ['batchyard_recorder', 'SELECT', 'audit_dropped, batchyard_schema, job_progress'],
        ['batchyard_callbacks', 'SELECT, UPDATE', 'callbacks'],
        ['batchyard_callbacks', 'SELECT', 'results, batchyard_schema'],
        ['batchyard_api', 'SELECT', 'tasks, results, jobs, batchyard_schema, ' || views],
        ['batchyard_api', 'SELECT, INSERT, UPDATE, DELETE', 'files, file_jobs'],
        ['batchyard_auditor', 'SELECT', 'files, file_jobs, audit_log, audit_chains, audit_tree, audit_checkpoints, audit_dropped, audit_statements, tasks, results, jobs, callbacks, stream_offsets, stream_breaks, batchyard_schema, '
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
COMMENT ON FUNCTION batchyard_grant_roles() IS 'Grants the roles of Batchyard what they need in this database. Returns the roles that the cluster does not have.';

SELECT batchyard_grant_roles();

-- +goose Down
-- The roles stay, because other databases of the cluster may use them. They lose all rights in this one.
-- +goose StatementBegin
DO $$
DECLARE
    schema_name text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass);
    r     text;
BEGIN
    FOR r IN SELECT rolname FROM pg_roles WHERE rolname IN ('batchyard_recorder', 'batchyard_callbacks', 'batchyard_api', 'batchyard_auditor', 'batchyard_reader') LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I', schema_name, r);
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM %I', schema_name, r);
        EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', schema_name, r);
    END LOOP;
END
$$;
-- +goose StatementEnd
DROP FUNCTION batchyard_grant_roles();
