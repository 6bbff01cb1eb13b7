-- +goose Up
-- The recorder copies the rows of a day straight into its partition, which saves Postgres to look for the partition of each
-- row. Whoever does so needs the right to add rows to the partition itself.

-- +goose StatementBegin
-- The partition of a UTC day, as SQL names it, if the caller may add rows to it; the recorders' role gets that right here.
-- Empty when there is none, or not now; then rows go through audit_log as well. It waits for nobody. Triggers for each
-- statement on audit_log would not fire for what goes elsewhere.
CREATE FUNCTION batchyard_audit_partition(day date) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    part oid;
    name text;
BEGIN
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) INTO part, name
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE i.inhparent = 'audit_log'::regclass AND NOT i.inhdetachpending AND c.relkind = 'r'
        AND c.relname = 'audit_log_' || to_char(day, 'YYYYMMDD')
        AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = i.inhparent AND NOT tgisinternal AND tgtype & 1 = 0);
    IF part IS NULL THEN
        RETURN '';
    END IF;
    IF has_table_privilege(session_user, part, 'INSERT') THEN
        RETURN name;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batchyard_recorder') AND pg_has_role(session_user, 'batchyard_recorder', 'USAGE') THEN
        IF NOT has_table_privilege('batchyard_recorder', part, 'INSERT') AND NOT pg_try_advisory_xact_lock(hashtextextended('batchyard_make_audit_partition', 0)) THEN
            RETURN ''; -- two at once would not do
        END IF;
        IF NOT has_table_privilege('batchyard_recorder', part, 'INSERT') THEN
            EXECUTE format('GRANT INSERT ON %s TO batchyard_recorder', name);
        END IF;
        RETURN name;
    END IF;
    RETURN '';
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_audit_partition(date) IS 'The partition of audit_log for one UTC day if the caller may add rows to it, else nothing; the role batchyard_recorder gets the right to.';

-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION batchyard_audit_partition(date) SECURITY DEFINER SET search_path = %I, pg_temp',
        (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'audit_log'::regclass));
END
$$;
-- +goose StatementEnd

SELECT batchyard_grant_roles();

-- +goose Down
DROP FUNCTION batchyard_audit_partition(date);
-- +goose StatementBegin
DO $$
DECLARE part regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batchyard_recorder') THEN
        FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_log'::regclass LOOP
            EXECUTE format('REVOKE INSERT ON %s FROM batchyard_recorder', part);
        END LOOP;
    END IF;
END
$$;
-- +goose StatementEnd
