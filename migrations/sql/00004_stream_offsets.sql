-- +goose Up
CREATE TABLE stream_offsets (
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT -1,
    epoch       bigint NOT NULL DEFAULT 0,
    owner       text NOT NULL DEFAULT '',
    topic_id    text COLLATE "C" NOT NULL DEFAULT '',
    cluster_id  text COLLATE "C" NOT NULL DEFAULT '',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);

COMMENT ON TABLE stream_offsets IS 'How far each partition has been recorded in this database. Written in the same transaction as the rows, so each record is stored exactly once.';
COMMENT ON COLUMN stream_offsets.topic IS 'Kafka topic, without the prefix of the installation.';
COMMENT ON COLUMN stream_offsets.partition IS 'Partition of the topic.';
COMMENT ON COLUMN stream_offsets.next_offset IS 'Offset of the first record that is not stored yet; -1 if none is.';
COMMENT ON COLUMN stream_offsets.epoch IS 'Counts the owners of the partition. It fences: an owner that was replaced can no longer write.';
COMMENT ON COLUMN stream_offsets.owner IS 'The process that took the partition most recently.';
COMMENT ON COLUMN stream_offsets.topic_id IS 'Kafka''s id of the topic that next_offset belongs to, in hex. A topic that was deleted and created again has another one. Empty: the broker is older than Kafka 2.8.';
COMMENT ON COLUMN stream_offsets.cluster_id IS 'Id of the Kafka cluster that next_offset belongs to. Empty: unknown.';
COMMENT ON COLUMN stream_offsets.updated_at IS 'When a record of the partition was stored most recently; before the first, when the partition was first taken.';

CREATE TABLE stream_breaks (
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL,
    kind         text COLLATE "C" NOT NULL CHECK (kind IN ('recorded_again', 'topic_replaced', 'records_missed')),
    chain_seq    bigint NOT NULL,
    first_offset bigint NOT NULL,
    last_offset  bigint,
    noticed_at   timestamptz NOT NULL,
    actor_id     text NOT NULL,
    resolved_at  timestamptz,
    PRIMARY KEY (topic, partition, kind, chain_seq, first_offset, noticed_at)
);

COMMENT ON TABLE stream_breaks IS 'Where recording could not simply continue: Postgres had lost rows, a topic was replaced, or Kafka had deleted records that were not recorded. If the recorder has a signing key, audit_statements says the same. Read by audit verify and ledger check.';
COMMENT ON COLUMN stream_breaks.topic IS 'Kafka topic, without the prefix of the installation.';
COMMENT ON COLUMN stream_breaks.partition IS 'Partition of the topic.';
COMMENT ON COLUMN stream_breaks.kind IS 'recorded_again: Postgres had lost rows that it had confirmed, as after a failover, and they were recorded again from Kafka. topic_replaced: the topic was deleted and created again, belongs to another cluster, or lost its last records. records_missed: Kafka deleted records before they were recorded.';
COMMENT ON COLUMN stream_breaks.chain_seq IS 'Number in the chain of the first audit row that was recorded afterwards, after that of the break itself if records are missing.';
COMMENT ON COLUMN stream_breaks.first_offset IS 'Offset of the first record that was recorded again, or that was not recorded.';
COMMENT ON COLUMN stream_breaks.last_offset IS 'Offset of the last such record; NULL if it is unknown.';
COMMENT ON COLUMN stream_breaks.noticed_at IS 'When a recorder noticed it, before it continued.';
COMMENT ON COLUMN stream_breaks.actor_id IS 'The recorder that noticed it.';
COMMENT ON COLUMN stream_breaks.resolved_at IS 'When every task whose answer may have been lost had ended or was on its way again; NULL before that.';

-- Signed statements that explain what would otherwise look like tampering: days that retention dropped, versions of the
-- schema, accepted restores, interruptions of the recording. They form a chain, whose end is in every checkpoint. There is about one a day, and retention
-- does not drop them.
CREATE TABLE audit_statements (
    number    bigint PRIMARY KEY,
    kind      text COLLATE "C" NOT NULL,
    noted_at  timestamptz NOT NULL,
    statement text NOT NULL
);
COMMENT ON TABLE audit_statements IS 'Signed statements of the recorders and of operators: days that retention dropped, versions of the schema, accepted restores, interruptions of the recording. docs/audit.md explains how they are verified.';
COMMENT ON COLUMN audit_statements.number IS 'Number of the statement, starting at 1, without gaps.';
COMMENT ON COLUMN audit_statements.kind IS 'rows_dropped, schema_seen, restore_accepted or recording_interrupted.';
COMMENT ON COLUMN audit_statements.noted_at IS 'When it was signed, by the clock of its signer.';
COMMENT ON COLUMN audit_statements.statement IS 'The statement as one line of JSON, whose last member is an Ed25519 signature. Verification uses this column only.';

-- +goose StatementBegin
-- Returns tasks that ended in a period, as audit_log says, and that have no row in tasks: Kafka deleted all that else said
-- something about them before it was recorded. It runs with the rights of the owner, because recorders may not read the log.
CREATE FUNCTION batchyard_tasks_without_state(since timestamptz, until timestamptz, most integer)
RETURNS TABLE (tenant text, task_id text, model text, job_id text, trace_id text)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT DISTINCT ON (a.tenant, a.task_id) a.tenant, a.task_id, coalesce(a.model, ''), coalesce(a.job_id, ''), coalesce(a.trace_id, '')
    FROM audit_log a
    WHERE a.time >= since AND a.time < until AND a.action IN ('task.succeeded', 'task.failed', 'task.cancelled', 'task.expired')
        AND a.task_id IS NOT NULL AND NOT EXISTS (SELECT FROM tasks t WHERE t.tenant = a.tenant AND t.task_id = a.task_id)
    LIMIT most
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION batchyard_tasks_without_state(timestamptz, timestamptz, integer) IS 'Tasks that ended in a period, as audit_log says, and that have no row in tasks, because Kafka deleted the other records about them before they were recorded. Recorders end them.';

-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION batchyard_tasks_without_state(timestamptz, timestamptz, integer) SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION batchyard_tasks_without_state(timestamptz, timestamptz, integer) FROM PUBLIC;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION batchyard_tasks_without_state(timestamptz, timestamptz, integer);
DROP TABLE audit_statements;
DROP TABLE stream_breaks;
DROP TABLE stream_offsets;
