-- +goose Up
-- Roles that may not log in; grant them to logins of your own (docs/sql.md). They belong to the cluster, not to this
-- database: another database of it may have made them, and uses them, too.
--
--   batchyard_recorder    the audit stage: adds to the audit log, and can neither read nor change what is there
--   batchyard_callbacks   the callbacks stage
--   batchyard_api         the api stage
--   batchyard_auditor     batchyard audit verify, export and the like: reads everything, changes nothing
--   batchyard_reader      people: the views, nothing else
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
                NULL; -- the migration of another database made it at the same moment
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the role % is missing, and % may not create it', r, current_user
                    USING HINT = format('Have an administrator run: CREATE ROLE %I NOLOGIN; then run: SELECT batchyard_grant_roles()', r);
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- Gives the roles what they need, those of them that there are. It may be run again at will, by the owner of the tables.
CREATE FUNCTION batchyard_grant_roles() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    place  text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass);
    views  text := 'task_timeline, stuck_tasks, task_ages, retries, device_history, device_availability, usage_by_day, stage_latency, '
                || 'stage_latency_by_hour, callback_failures, batch_sizes, user_actions, submissions, refusals';
    given  text[];
    missing text[] := '{}';
    f      record;
BEGIN
    -- Who may create functions here could have his own called, under the name of one of Postgres' own, by those that work
    -- with the rights of the owner. Databases from before Postgres 15 let everybody.
    IF has_schema_privilege('public', place, 'CREATE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', place);
    END IF;
    -- What works with the rights of the owner is not for everybody.
    FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = place::regnamespace AND p.proname LIKE 'batchyard\_%'
        AND p.proname NOT IN ('batchyard_bucket', 'batchyard_bucket_ms') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name);
    END LOOP;
    FOREACH given SLICE 1 IN ARRAY ARRAY[
        ['batchyard_recorder', 'INSERT', 'audit_log'],
        ['batchyard_recorder', 'SELECT (time)', 'audit_log_default'], -- to raise the alarm when there are rows
        ['batchyard_recorder', 'SELECT, INSERT, UPDATE', 'tasks, stream_offsets, audit_chains, rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions'],
        ['batchyard_recorder', 'SELECT, INSERT', 'results, callbacks'],
        ['batchyard_recorder', 'SELECT', 'audit_dropped, batchyard_schema'],
        ['batchyard_callbacks', 'SELECT, UPDATE', 'callbacks'],
        ['batchyard_callbacks', 'SELECT', 'results, batchyard_schema'],
        ['batchyard_api', 'SELECT', 'tasks, results, batchyard_schema, ' || views],
        ['batchyard_auditor', 'SELECT', 'audit_log, audit_chains, audit_dropped, tasks, results, callbacks, stream_offsets, batchyard_schema, '
            || 'rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions, ' || views],
        ['batchyard_reader', 'SELECT', views]
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = given[1]) THEN
            missing := missing || given[1];
            CONTINUE;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', place, given[1]);
        EXECUTE format('GRANT %s ON %s TO %I', given[2], given[3], given[1]);
    END LOOP;
    -- The recorder owns no table, so functions that do so much and no more look after the partitions for it.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batchyard_recorder') THEN
        FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = place::regnamespace AND p.prosecdef AND p.proname LIKE 'batchyard\_%' LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO batchyard_recorder', f.name);
        END LOOP;
    END IF;
    RETURN ARRAY(SELECT DISTINCT m FROM unnest(missing) m ORDER BY 1);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_grant_roles() IS 'Gives the roles of Batchyard what they need in this database; returns those that are missing in the cluster.';

SELECT batchyard_grant_roles();

-- +goose Down
-- The roles stay: other databases of the cluster may use them. They keep nothing in this one.
-- +goose StatementBegin
DO $$
DECLARE
    place text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass);
    r     text;
BEGIN
    FOR r IN SELECT rolname FROM pg_roles WHERE rolname IN ('batchyard_recorder', 'batchyard_callbacks', 'batchyard_api', 'batchyard_auditor', 'batchyard_reader') LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I', place, r);
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM %I', place, r);
        EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', place, r);
    END LOOP;
END
$$;
-- +goose StatementEnd
DROP FUNCTION batchyard_grant_roles();
