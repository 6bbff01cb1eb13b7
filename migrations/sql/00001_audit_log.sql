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
    input_tokens  bigint,
    output_tokens bigint,
    input_sha256  bytea,
    input_bytes   bigint,
    output_sha256 bytea,
    output_bytes  bigint,
    detail        json,
    src_topic     text NOT NULL,
    src_partition integer NOT NULL,
    src_offset    bigint NOT NULL,
    src_index     integer NOT NULL,
    chain_seq     bigint,
    prev_hash     bytea,
    row_hash      bytea
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
COMMENT ON COLUMN audit_log.input_tokens IS 'Input tokens, as the device counted them.';
COMMENT ON COLUMN audit_log.output_tokens IS 'Output tokens, as the device counted them.';
COMMENT ON COLUMN audit_log.input_sha256 IS 'SHA-256 of the input.';
COMMENT ON COLUMN audit_log.input_bytes IS 'Size of the input in bytes.';
COMMENT ON COLUMN audit_log.output_sha256 IS 'SHA-256 of the output.';
COMMENT ON COLUMN audit_log.output_bytes IS 'Size of the output in bytes.';
COMMENT ON COLUMN audit_log.detail IS 'What else is to be known, as a small JSON object, byte for byte as it was written.';
COMMENT ON COLUMN audit_log.src_topic IS 'Topic of the record that the row was made from.';
COMMENT ON COLUMN audit_log.src_partition IS 'Partition of the record.';
COMMENT ON COLUMN audit_log.src_offset IS 'Offset of the record.';
COMMENT ON COLUMN audit_log.src_index IS 'Place of the event within the record; topic, partition, offset and place identify a row.';
COMMENT ON COLUMN audit_log.chain_seq IS 'Number of the row in its chain, from 1; the chain is that of src_topic and src_partition.';
COMMENT ON COLUMN audit_log.prev_hash IS 'row_hash of the row before it in its chain.';
COMMENT ON COLUMN audit_log.row_hash IS 'SHA-256 of prev_hash and of all other columns, as COPY writes them in binary.';

-- Each index costs the recorder at every row, so there are few, and each answers more than one question.

-- The timeline of a task, also for who does not know the tenant. Without the time in it, the rows of a task have the same
-- key, which Postgres keeps once for all of them: it is a third as large.
CREATE INDEX audit_log_task ON audit_log (task_id, tenant) WHERE task_id IS NOT NULL;
-- What happened between two times; as good as free, because rows come in that order.
CREATE INDEX audit_log_time ON audit_log USING brin (time) WITH (pages_per_range = 32);
-- The history of a device: few rows, because most events are about a task.
CREATE INDEX audit_log_device ON audit_log (device_id, time) WHERE task_id IS NULL AND device_id IS NOT NULL;
-- What was refused: few rows of many.
CREATE INDEX audit_log_refused ON audit_log (time) WHERE outcome = 'refused';
-- What people did, by time and by what it was: few rows of many, so that looking through the entries of a month for an
-- action takes some milliseconds. But every row of the log is held against the condition of every index: one for both.
CREATE INDEX audit_log_user ON audit_log (time, action) WHERE actor_type = 'user' AND action <> 'task.accepted';

-- Takes what belongs to no day that has a partition. Something is wrong when it holds rows.
CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;
COMMENT ON TABLE audit_log_default IS 'Events of days that have no partition. Normally empty: rows here mean clocks that are wrong or partitions that could not be made.';

CREATE TABLE audit_chains (
    topic      text COLLATE "C" NOT NULL,
    partition  integer NOT NULL,
    rows       bigint NOT NULL,
    hash       bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);
COMMENT ON TABLE audit_chains IS 'Where each chain of the audit log ends. Written in the transaction that writes the rows.';
COMMENT ON COLUMN audit_chains.topic IS 'Topic of the records that the rows are made from.';
COMMENT ON COLUMN audit_chains.partition IS 'Partition of the topic.';
COMMENT ON COLUMN audit_chains.rows IS 'Rows in the chain; chain_seq of the last one.';
COMMENT ON COLUMN audit_chains.hash IS 'row_hash of the last row.';
COMMENT ON COLUMN audit_chains.updated_at IS 'When the row was written last.';

CREATE TABLE audit_dropped (
    day        date NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    partition  integer NOT NULL,
    first_seq  bigint NOT NULL,
    last_seq   bigint NOT NULL,
    prev_hash  bytea NOT NULL,
    row_hash   bytea NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, first_seq)
);
COMMENT ON TABLE audit_dropped IS 'What audit.retention has dropped: each run of consecutive rows of a chain, with the hashes at its two ends, so that the rows around it can still be verified.';
COMMENT ON COLUMN audit_dropped.day IS 'The UTC day whose partition was dropped.';
COMMENT ON COLUMN audit_dropped.topic IS 'Topic of the chain.';
COMMENT ON COLUMN audit_dropped.partition IS 'Partition of the chain.';
COMMENT ON COLUMN audit_dropped.first_seq IS 'chain_seq of the first row of the run.';
COMMENT ON COLUMN audit_dropped.last_seq IS 'chain_seq of the last row of the run.';
COMMENT ON COLUMN audit_dropped.prev_hash IS 'prev_hash of the first row of the run.';
COMMENT ON COLUMN audit_dropped.row_hash IS 'row_hash of the last row of the run.';
COMMENT ON COLUMN audit_dropped.dropped_at IS 'When it was dropped.';

-- Partitions are made and dropped by functions that act as the owner of the schema, so that whoever records needs no
-- right to create, alter or drop anything. They look for tables in the schema that they are in and nowhere else.

-- +goose StatementBegin
-- Makes the partition of one UTC day and moves what the default partition holds
-- of that day into it. True when it was made, false when it was there already.
-- It attaches a table that was made beforehand, so that rows can be written to
-- the other partitions all the while; only the default one is locked.
CREATE FUNCTION batchyard_make_audit_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $$
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

-- +goose StatementBegin
-- Drops what the log holds of one UTC day: its partition, or, when it has none, its rows in the default partition.
-- Each run of consecutive rows of a chain is noted in audit_dropped in the same transaction. A run ends where the chain
-- is broken, so that dropping hides nothing.
--
-- Writers of that day wait meanwhile (there are hardly any: it is over for long); everybody else does only while the
-- table is dropped. Set lock_timeout: the last lock waits for queries that are running, and others queue behind it.
CREATE FUNCTION batchyard_drop_audit_partition(day date, OUT dropped bigint, OUT chained bigint, OUT runs bigint)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    name   text := 'audit_log_' || to_char(day, 'YYYYMMDD');
    since  timestamptz := day::timestamp AT TIME ZONE 'UTC';
    until  timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    source text;
    keep   CONSTANT text := $q$,
        marked AS (
            SELECT src_topic, src_partition, chain_seq, prev_hash, row_hash,
                (lag(chain_seq) OVER w = chain_seq - 1 AND lag(row_hash) OVER w = prev_hash) IS TRUE AS follows,
                (lead(chain_seq) OVER w = chain_seq + 1 AND lead(prev_hash) OVER w = row_hash) IS TRUE AS goes_on
            FROM source WHERE chain_seq IS NOT NULL AND prev_hash IS NOT NULL AND row_hash IS NOT NULL
            WINDOW w AS (PARTITION BY src_topic, src_partition ORDER BY chain_seq, row_hash)),
        ends AS (
            SELECT src_topic, src_partition, chain_seq, prev_hash, follows,
                CASE WHEN goes_on THEN lead(chain_seq) OVER w ELSE chain_seq END AS last_seq,
                CASE WHEN goes_on THEN lead(row_hash) OVER w ELSE row_hash END AS last_hash
            FROM marked WHERE NOT (follows AND goes_on)
            WINDOW w AS (PARTITION BY src_topic, src_partition ORDER BY chain_seq, row_hash)),
        kept AS (
            INSERT INTO audit_dropped (day, topic, partition, first_seq, last_seq, prev_hash, row_hash)
            SELECT $1, src_topic, src_partition, chain_seq, last_seq, prev_hash, last_hash FROM ends WHERE NOT follows
            ON CONFLICT DO NOTHING
            RETURNING last_seq - first_seq + 1 AS n)
        SELECT (SELECT count(*) FROM source), coalesce(sum(n), 0), count(*) FROM kept $q$;
BEGIN
    IF until > now() - interval '24 hours' THEN
        RAISE EXCEPTION 'the audit rows of % are not to be dropped: the day ended less than 24 hours ago', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('batchyard_make_audit_partition', 0));
    IF EXISTS (SELECT 1 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'audit_log'::regclass AND c.relname = name) THEN
        EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
        EXECUTE 'WITH source AS (' || format('SELECT src_topic, src_partition, chain_seq, prev_hash, row_hash FROM %I', name) || ')' || keep
            INTO dropped, chained, runs USING day;
        EXECUTE format('DROP TABLE %I', name);
    ELSE
        EXECUTE 'WITH source AS (DELETE FROM audit_log_default WHERE time >= $2 AND time < $3
                 RETURNING src_topic, src_partition, chain_seq, prev_hash, row_hash)' || keep
            INTO dropped, chained, runs USING day, since, until;
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_drop_audit_partition(date) IS 'Drops the audit rows of one UTC day that ended at least 24 hours ago and notes in audit_dropped which rows of which chains they were: how many rows, how many of them in chains, in how many runs.';

-- +goose StatementBegin
-- The partition of a UTC day, as SQL names it, if the caller may add rows to it; the recorders' role gets that right here.
-- Empty when there is none, or not now; then rows go through audit_log as well. It waits for nobody. Triggers for each
-- statement on audit_log would not fire for what goes elsewhere.
CREATE FUNCTION batchyard_audit_partition(day date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER AS $$
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

-- Whoever calls them may have tables of the same names, in a schema of his own or temporary ones: those are not meant.
-- +goose StatementBegin
DO $$
DECLARE f text;
BEGIN
    FOREACH f IN ARRAY ARRAY['batchyard_make_audit_partition(date)', 'batchyard_drop_audit_partition(date)', 'batchyard_audit_partition(date)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', f, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION batchyard_audit_partition(date);
DROP FUNCTION batchyard_drop_audit_partition(date);
DROP FUNCTION batchyard_make_audit_partition(date);
DROP TABLE audit_dropped;
DROP TABLE audit_chains;
DROP TABLE audit_log;
