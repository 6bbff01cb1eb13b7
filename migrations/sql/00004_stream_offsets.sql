-- +goose Up
CREATE TABLE stream_offsets (
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT -1,
    epoch       bigint NOT NULL DEFAULT 0,
    owner       text NOT NULL DEFAULT '',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);

COMMENT ON TABLE stream_offsets IS 'Up to where each partition is in this database. Written in the transaction that writes the rows, so each record is here exactly once.';
COMMENT ON COLUMN stream_offsets.topic IS 'Topic in Kafka, without the prefix of the installation.';
COMMENT ON COLUMN stream_offsets.partition IS 'Partition of the topic.';
COMMENT ON COLUMN stream_offsets.next_offset IS 'Offset of the first record that is not here; -1: none is.';
COMMENT ON COLUMN stream_offsets.epoch IS 'Counts the owners: one that was replaced cannot write any more.';
COMMENT ON COLUMN stream_offsets.owner IS 'The process that took the partition last.';
COMMENT ON COLUMN stream_offsets.updated_at IS 'When the row was written last.';

-- +goose Down
DROP TABLE stream_offsets;
