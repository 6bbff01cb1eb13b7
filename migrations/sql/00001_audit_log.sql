-- +goose Up
COMMENT ON TABLE batchyard_schema IS 'The migrations that were applied. The highest version is the version of the schema.';
COMMENT ON COLUMN batchyard_schema.id IS 'Number of the row.';
COMMENT ON COLUMN batchyard_schema.version_id IS 'Number of the migration.';
COMMENT ON COLUMN batchyard_schema.is_applied IS 'Whether the migration was applied.';
COMMENT ON COLUMN batchyard_schema.tstamp IS 'When it was applied.';

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
    row_digests   bytea,
    src_topic     text NOT NULL,
    src_partition integer NOT NULL,
    src_offset    bigint NOT NULL,
    src_index     integer NOT NULL,
    chain_seq     bigint,
    prev_hash     bytea,
    row_hash      bytea
) PARTITION BY RANGE (time);

COMMENT ON TABLE audit_log IS 'One row per event: who did what to what, when, from where, and with what outcome. Partitioned by UTC day. Holds no prompts and no answers.';
COMMENT ON COLUMN audit_log.time IS 'When it happened, by the clock of the process that recorded it.';
COMMENT ON COLUMN audit_log.ingested_at IS 'When the row was written, by the clock of the database.';
COMMENT ON COLUMN audit_log.tenant IS 'Tenant that the task, job or callback belongs to; empty for events that belong to no tenant, such as those of a device.';
COMMENT ON COLUMN audit_log.actor_type IS 'Who acted: user, stage or device.';
COMMENT ON COLUMN audit_log.actor_id IS 'Name of the user, the device, or the stage instance (stage@host-pid).';
COMMENT ON COLUMN audit_log.source_addr IS 'Where the request came from: an address with its port, or kafka:topic/partition@offset.';
COMMENT ON COLUMN audit_log.user_agent IS 'User agent of the client.';
COMMENT ON COLUMN audit_log.action IS 'What was done, such as task.accepted. docs/actions.md lists all actions.';
COMMENT ON COLUMN audit_log.resource_type IS 'Kind of thing it was done to: task, batch, device, callback, job, record …';
COMMENT ON COLUMN audit_log.resource_id IS 'Id of the thing it was done to.';
COMMENT ON COLUMN audit_log.outcome IS 'ok, failed or refused.';
COMMENT ON COLUMN audit_log.error_class IS 'Class of the error: invalid, device, connect, timeout, throttled …';
COMMENT ON COLUMN audit_log.task_id IS 'Id of the task, unique within the tenant.';
COMMENT ON COLUMN audit_log.job_id IS 'Id of the job that the task belongs to.';
COMMENT ON COLUMN audit_log.batch_id IS 'Id of the batch in which the task was sent to its device.';
COMMENT ON COLUMN audit_log.device_id IS 'Id of the device that was chosen, was sent a request, joined …';
COMMENT ON COLUMN audit_log.attempt IS 'Number of the attempt, from 1; empty if there was no attempt.';
COMMENT ON COLUMN audit_log.trace_id IS 'W3C trace id of the task.';
COMMENT ON COLUMN audit_log.duration_ms IS 'How long the action took, in milliseconds.';
COMMENT ON COLUMN audit_log.model IS 'Model that the request named.';
COMMENT ON COLUMN audit_log.input_tokens IS 'Input tokens as counted by the device.';
COMMENT ON COLUMN audit_log.output_tokens IS 'Output tokens as counted by the device.';
COMMENT ON COLUMN audit_log.input_sha256 IS 'SHA-256 of the input.';
COMMENT ON COLUMN audit_log.input_bytes IS 'Size of the input in bytes.';
COMMENT ON COLUMN audit_log.output_sha256 IS 'SHA-256 of the output.';
COMMENT ON COLUMN audit_log.output_bytes IS 'Size of the output in bytes.';
COMMENT ON COLUMN audit_log.detail IS 'Further facts as a small JSON object, stored byte for byte as it was written.';
COMMENT ON COLUMN audit_log.row_digests IS 'SHA-256 of each row of results, tasks, callbacks and jobs that the transaction wrote, in its last audit row. docs/audit.md explains the form.';
COMMENT ON COLUMN audit_log.src_topic IS 'Topic of the record that the row comes from.';
COMMENT ON COLUMN audit_log.src_partition IS 'Partition of that record.';
COMMENT ON COLUMN audit_log.src_offset IS 'Offset of that record.';
COMMENT ON COLUMN audit_log.src_index IS 'Index of the event within that record. Topic, partition, offset and index identify a row.';
COMMENT ON COLUMN audit_log.chain_seq IS 'Number of the row in its hash chain, from 1. There is one chain per src_topic and src_partition.';
COMMENT ON COLUMN audit_log.prev_hash IS 'row_hash of the previous row of the chain.';
COMMENT ON COLUMN audit_log.row_hash IS 'SHA-256 over prev_hash and all other columns in the binary format of COPY.';

-- The recorder pays for every index on every row, so there are few, and most serve more than one query.

-- Timeline of a task, with or without its tenant. The time is left out on purpose: all rows of a task then share one key,
-- which Postgres stores once, so the index is a third of the size.
CREATE INDEX audit_log_task ON audit_log (task_id, tenant) WHERE task_id IS NOT NULL;
-- Rows of a time range. Rows arrive in order of time, so a BRIN index costs almost nothing.
CREATE INDEX audit_log_time ON audit_log USING brin (time) WITH (pages_per_range = 32);
-- History of a device. Few rows, because most events are about a task.
CREATE INDEX audit_log_device ON audit_log (device_id, time) WHERE task_id IS NULL AND device_id IS NOT NULL;
-- Refusals, which are rare.
CREATE INDEX audit_log_refused ON audit_log (time) WHERE outcome = 'refused';
-- Actions of users other than submitting, which are rare: scanning a month of entries for one action takes milliseconds.
-- Postgres evaluates the condition of every partial index for every row inserted, so one index serves both queries.
CREATE INDEX audit_log_user ON audit_log (time, action) WHERE actor_type = 'user' AND action <> 'task.accepted';

-- Catches rows of days that have no partition. If it holds rows, something is wrong.
CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;
COMMENT ON TABLE audit_log_default IS 'Events of days that have no partition. Normally empty: rows here mean that a clock is wrong or that a partition could not be created.';

CREATE TABLE audit_chains (
    topic      text COLLATE "C" NOT NULL,
    partition  integer NOT NULL,
    rows       bigint NOT NULL,
    hash       bytea NOT NULL,
    edge       bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);
COMMENT ON TABLE audit_chains IS 'The end of each hash chain of the audit log and of its Merkle tree, written in the same transaction as the rows.';
COMMENT ON COLUMN audit_chains.topic IS 'Topic of the records that the rows come from.';
COMMENT ON COLUMN audit_chains.partition IS 'Partition of the topic.';
COMMENT ON COLUMN audit_chains.rows IS 'Number of rows in the chain, which is the chain_seq of the last one.';
COMMENT ON COLUMN audit_chains.hash IS 'row_hash of the last row.';
COMMENT ON COLUMN audit_chains.edge IS 'The right edge of the Merkle tree over the row_hashes of the chain: the roots of its perfect subtrees, the largest first, 32 bytes each.';
COMMENT ON COLUMN audit_chains.updated_at IS 'When this row was last written.';

-- What of the Merkle trees a proof needs besides the rows: the root of each 256, 65,536 … consecutive rows. Where retention
-- has dropped some of 256 rows, the leaves of these stay (level 0), so that the others can still be proven.
CREATE TABLE audit_tree (
    topic     text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    level     smallint NOT NULL,
    node      bigint NOT NULL,
    hash      bytea NOT NULL,
    PRIMARY KEY (topic, partition, level, node)
);
COMMENT ON TABLE audit_tree IS 'Hashes inside the Merkle trees (RFC 6962) over the rows of each chain, from which audit prove makes proofs. Written with the rows.';
COMMENT ON COLUMN audit_tree.topic IS 'Topic of the chain.';
COMMENT ON COLUMN audit_tree.partition IS 'Partition of the chain.';
COMMENT ON COLUMN audit_tree.level IS 'The hash is the root over 2^level rows: 8, 16, 24 …; 0: the leaf of a row that retention dropped.';
COMMENT ON COLUMN audit_tree.node IS 'Number of the node on its level, from 0: it begins with row node * 2^level + 1.';
COMMENT ON COLUMN audit_tree.hash IS 'The hash.';

-- The log of checkpoints of each signer: enough to continue it and to prove to a witness that it only grows.
CREATE TABLE audit_checkpoints (
    signer text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL,
    line   text,
    PRIMARY KEY (signer, number)
);
COMMENT ON TABLE audit_checkpoints IS 'The log of checkpoints of each signing key, from which recorders continue. The checkpoints themselves are in audit.checkpoint_dir and in the topic checkpoints.';
COMMENT ON COLUMN audit_checkpoints.signer IS 'Id of the signing key.';
COMMENT ON COLUMN audit_checkpoints.number IS 'Number of the checkpoint, from 1.';
COMMENT ON COLUMN audit_checkpoints.hashes IS 'The hashes of the Merkle tree over the checkpoints that this one completes, its own leaf first, 32 bytes each.';
COMMENT ON COLUMN audit_checkpoints.line IS 'The checkpoint, as long as it is one of the last.';

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
COMMENT ON TABLE audit_dropped IS 'Audit rows that audit.retention dropped: each run of consecutive rows of a chain with the hashes at its ends, so that the rows before and after it can still be verified.';
COMMENT ON COLUMN audit_dropped.day IS 'The UTC day whose partition was dropped.';
COMMENT ON COLUMN audit_dropped.topic IS 'Topic of the chain.';
COMMENT ON COLUMN audit_dropped.partition IS 'Partition of the chain.';
COMMENT ON COLUMN audit_dropped.first_seq IS 'chain_seq of the first row of the run.';
COMMENT ON COLUMN audit_dropped.last_seq IS 'chain_seq of the last row of the run.';
COMMENT ON COLUMN audit_dropped.prev_hash IS 'prev_hash of the first row of the run.';
COMMENT ON COLUMN audit_dropped.row_hash IS 'row_hash of the last row of the run.';
COMMENT ON COLUMN audit_dropped.dropped_at IS 'When it was dropped.';

-- Functions create and drop partitions with the rights of the owner of the schema, so the recorder's login needs no right
-- to create, alter or drop anything. They look for tables in their own schema only.

-- +goose StatementBegin
-- Creates the partition of one UTC day and moves the rows that the default partition holds of that day into it. Returns
-- true if it created the partition, false if it existed.
--
-- It creates a table first and attaches it afterwards, so that inserts into other partitions continue: only the default
-- partition is locked exclusively.
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
    -- Ask again with a query: to_regclass may answer from a cache filled before we waited for the lock.
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
COMMENT ON FUNCTION batchyard_make_audit_partition(date) IS 'Creates the partition of audit_log for one UTC day. Returns false if it exists already.';

-- +goose StatementBegin
-- Drops the rows of one UTC day: its partition or, if it has none, its rows in the default partition. The same transaction
-- notes each run of consecutive rows of a chain in audit_dropped. A run ends where the chain is broken, so dropping a day
-- cannot hide a broken chain. It keeps the leaves of rows that others of the same 256 need for their proofs.
--
-- It locks the partition first (SHARE: writers of that day wait, and there are hardly any, since the day is long over) and
-- audit_log last, while it drops the table. That last lock waits for running queries, and new ones queue behind it: set
-- lock_timeout.
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
            RETURNING last_seq - first_seq + 1 AS n),
        blocks AS (
            SELECT b.*, (SELECT count(*) FROM audit_tree t WHERE t.topic = b.src_topic AND t.partition = b.src_partition
                AND t.level = 0 AND t.node BETWEEN 256 * b.block AND 256 * b.block + 255) AS had
            FROM (SELECT src_topic, src_partition, (chain_seq - 1) / 256 AS block, count(*) AS n FROM source
                  WHERE chain_seq IS NOT NULL AND row_hash IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) < 256) b),
        unneeded AS (
            DELETE FROM audit_tree t USING blocks b WHERE b.n + b.had >= 256 AND t.topic = b.src_topic AND t.partition = b.src_partition
                AND t.level = 0 AND t.node BETWEEN 256 * b.block AND 256 * b.block + 255),
        leaves AS (
            INSERT INTO audit_tree (topic, partition, level, node, hash)
            SELECT s.src_topic, s.src_partition, 0, s.chain_seq - 1, sha256('\x00'::bytea || s.row_hash)
            FROM source s JOIN blocks b ON b.src_topic = s.src_topic AND b.src_partition = s.src_partition AND b.block = (s.chain_seq - 1) / 256
            WHERE b.n + b.had < 256 AND s.row_hash IS NOT NULL
            ON CONFLICT DO NOTHING)
        SELECT (SELECT count(*) FROM source), coalesce(sum(n), 0), count(*) FROM kept $q$;
BEGIN
    IF until > now() - interval '24 hours' THEN
        RAISE EXCEPTION 'the audit rows of % cannot be dropped: the day ended less than 24 hours ago', day
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
COMMENT ON FUNCTION batchyard_drop_audit_partition(date) IS 'Drops the audit rows of one UTC day that ended at least 24 hours ago and notes in audit_dropped which rows of which chains they were. Returns the number of rows, of rows in chains, and of runs.';

-- +goose StatementBegin
-- Returns the qualified name of the partition of a UTC day if the caller may insert into it, and grants that right to the
-- recorder's role. Copying rows straight into a partition saves Postgres from routing each row.
--
-- Returns an empty string if there is no such partition, or if finding out would mean waiting for a lock: the caller then
-- inserts into audit_log. The same if audit_log has statement triggers, which an insert into a partition would bypass.
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
            RETURN ''; -- concurrent GRANTs on one table fail
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
COMMENT ON FUNCTION batchyard_audit_partition(date) IS 'Returns the partition of audit_log for one UTC day if the caller may insert into it, otherwise an empty string. Grants that right to the role batchyard_recorder.';

-- A caller could have tables of the same names in another schema or temporary ones. Pin the search path, so that they are
-- never used with the rights of the owner.
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
DROP TABLE audit_checkpoints;
DROP TABLE audit_tree;
DROP TABLE audit_dropped;
DROP TABLE audit_chains;
DROP TABLE audit_log;
