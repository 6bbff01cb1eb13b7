-- +goose Up
COMMENT ON TABLE batchyard_schema IS 'Which migrations were applied; the highest version is that of the schema.';
COMMENT ON COLUMN batchyard_schema.id IS 'Number of the entry.';
COMMENT ON COLUMN batchyard_schema.version_id IS 'Number of the migration.';
COMMENT ON COLUMN batchyard_schema.is_applied IS 'Whether the migration was applied.';
COMMENT ON COLUMN batchyard_schema.tstamp IS 'When.';

CREATE TABLE audit_log (
    time          timestamptz NOT NULL,
    ingested_at   timestamptz NOT NULL DEFAULT now(),
    tenant        text COLLATE "C" NOT NULL,
    actor_type    text NOT NULL,
    actor_id      text NOT NULL,
    source_addr   text,
    user_agent    text,
    action        text NOT NULL,
    resource_type text,
    resource_id   text,
    outcome       text NOT NULL,
    error_class   text,
    task_id       text COLLATE "C",
    job_id        text COLLATE "C",
    batch_id      text,
    device_id     text COLLATE "C",
    attempt       integer,
    trace_id      text,
    duration_ms   double precision,
    model         text,
    tokens_in     bigint,
    tokens_out    bigint,
    input_sha256  bytea,
    input_bytes   bigint,
    output_sha256 bytea,
    output_bytes  bigint,
    detail        json,
    src_topic     text NOT NULL,
    src_partition integer NOT NULL,
    src_offset    bigint NOT NULL,
    src_index     integer NOT NULL
) PARTITION BY RANGE (time);

COMMENT ON TABLE audit_log IS 'Who did what to what, when, from where and how it ended: one row for each event, partitioned by UTC day. No prompts and no answers.';
COMMENT ON COLUMN audit_log.time IS 'When it happened, by the clock of who did it.';
COMMENT ON COLUMN audit_log.ingested_at IS 'When the row was written, by the clock of the database.';
COMMENT ON COLUMN audit_log.tenant IS 'Whose task, job or callback it was about; empty for what belongs to no tenant, such as a device.';
COMMENT ON COLUMN audit_log.actor_type IS 'Who acted: user, stage or device.';
COMMENT ON COLUMN audit_log.actor_id IS 'Name of the user, device, or stage instance (stage@host-pid).';
COMMENT ON COLUMN audit_log.source_addr IS 'Where it came from: an address and port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN audit_log.user_agent IS 'What the client calls itself.';
COMMENT ON COLUMN audit_log.action IS 'What was done, such as task.accepted; Actions in package task is the complete list.';
COMMENT ON COLUMN audit_log.resource_type IS 'What it was done to: task, batch, device, callback, job, record …';
COMMENT ON COLUMN audit_log.resource_id IS 'Id of what it was done to.';
COMMENT ON COLUMN audit_log.outcome IS 'How it ended: ok, failed or refused.';
COMMENT ON COLUMN audit_log.error_class IS 'Whose fault a failure was: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN audit_log.task_id IS 'Id of the task; unique together with the tenant.';
COMMENT ON COLUMN audit_log.job_id IS 'Job that the task belongs to.';
COMMENT ON COLUMN audit_log.batch_id IS 'Batch in which the task was sent.';
COMMENT ON COLUMN audit_log.device_id IS 'Device that was chosen, asked, joined …';
COMMENT ON COLUMN audit_log.attempt IS 'Number of the attempt, from 1; empty when nothing was tried.';
COMMENT ON COLUMN audit_log.trace_id IS 'W3C trace id of the task.';
COMMENT ON COLUMN audit_log.duration_ms IS 'How long the action took, in milliseconds.';
COMMENT ON COLUMN audit_log.model IS 'Model that was asked.';
COMMENT ON COLUMN audit_log.tokens_in IS 'Input tokens, as the device counted them.';
COMMENT ON COLUMN audit_log.tokens_out IS 'Output tokens, as the device counted them.';
COMMENT ON COLUMN audit_log.input_sha256 IS 'SHA-256 of the input.';
COMMENT ON COLUMN audit_log.input_bytes IS 'Size of the input in bytes.';
COMMENT ON COLUMN audit_log.output_sha256 IS 'SHA-256 of the output.';
COMMENT ON COLUMN audit_log.output_bytes IS 'Size of the output in bytes.';
COMMENT ON COLUMN audit_log.detail IS 'What else is to be known, as a small JSON object, byte for byte as it was written.';
COMMENT ON COLUMN audit_log.src_topic IS 'Topic of the record that the row was made from.';
COMMENT ON COLUMN audit_log.src_partition IS 'Partition of the record.';
COMMENT ON COLUMN audit_log.src_offset IS 'Offset of the record.';
COMMENT ON COLUMN audit_log.src_index IS 'Place of the event within the record; topic, partition, offset and place identify a row.';

-- The timeline of a task.
CREATE INDEX audit_log_task ON audit_log (tenant, task_id, time) WHERE task_id IS NOT NULL;
-- What happened between two times; as good as free, because rows come in that order.
CREATE INDEX audit_log_time ON audit_log USING brin (time) WITH (pages_per_range = 32);
-- The history of a device: few rows, because most events are about a task.
CREATE INDEX audit_log_device ON audit_log (device_id, time) WHERE task_id IS NULL AND device_id IS NOT NULL;

-- Takes what belongs to no day that has a partition. Something is wrong when it holds rows.
CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;
COMMENT ON TABLE audit_log_default IS 'Events of days that have no partition. Normally empty: rows here mean clocks that are wrong or partitions that could not be made.';

-- +goose StatementBegin
-- Makes the partition of one UTC day and moves what the default partition holds
-- of that day into it. True when it was made, false when it was there already.
-- It attaches a table that was made beforehand, so that rows can be written to
-- the other partitions all the while; only the default one is locked.
CREATE FUNCTION batchyard_make_audit_partition(day date) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name  text := 'audit_log_' || to_char(day, 'YYYYMMDD');
    since timestamptz := day::timestamp AT TIME ZONE 'UTC';
    until timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    IF to_regclass(quote_ident(name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('batchyard_make_audit_partition', 0));
    -- By a query: to_regclass may remember that there was none before we waited.
    IF EXISTS (SELECT 1 FROM pg_class c WHERE c.relname = name
               AND c.relnamespace = (SELECT p.relnamespace FROM pg_class p WHERE p.oid = 'audit_log'::regclass)) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE audit_log INCLUDING DEFAULTS INCLUDING COMMENTS)', name);
    EXECUTE format('COMMENT ON TABLE %I IS %L', name, 'Events of ' || day || ' (UTC).');
    LOCK TABLE audit_log_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('WITH moved AS (DELETE FROM audit_log_default WHERE time >= $1 AND time < $2 RETURNING *)
                    INSERT INTO %I SELECT * FROM moved', name) USING since, until;
    EXECUTE format('ALTER TABLE audit_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, since, until);
    RETURN true;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_make_audit_partition(date) IS 'Makes the partition of audit_log for one UTC day unless it is there; true when it made one.';

-- +goose Down
DROP FUNCTION batchyard_make_audit_partition(date);
DROP TABLE audit_log;
