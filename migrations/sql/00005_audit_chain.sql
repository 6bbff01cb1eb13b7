-- +goose Up
-- Each row of the audit log names the one before it in its chain by its hash, so that what is changed, removed,
-- moved or added afterwards is noticed. There is a chain for each partition of the topics that rows are made from.
-- Rows from before this migration belong to no chain; their three columns are empty.
ALTER TABLE audit_log
    ADD COLUMN chain_seq bigint,
    ADD COLUMN prev_hash bytea,
    ADD COLUMN row_hash  bytea;
COMMENT ON COLUMN audit_log.chain_seq IS 'Number of the row in its chain, from 1; the chain is that of src_topic and src_partition.';
COMMENT ON COLUMN audit_log.prev_hash IS 'row_hash of the row before it in its chain.';
COMMENT ON COLUMN audit_log.row_hash IS 'SHA-256 of prev_hash and of all other columns, as COPY writes them in binary.';

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

-- +goose Down
DROP TABLE audit_dropped;
DROP TABLE audit_chains;
ALTER TABLE audit_log DROP COLUMN chain_seq, DROP COLUMN prev_hash, DROP COLUMN row_hash;
