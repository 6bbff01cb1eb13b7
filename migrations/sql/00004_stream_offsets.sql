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

COMMENT ON TABLE stream_offsets IS 'How far each partition has been recorded in this database. Written in the same transaction as the rows, so each record is stored exactly once.';
COMMENT ON COLUMN stream_offsets.topic IS 'Kafka topic, without the prefix of the installation.';
COMMENT ON COLUMN stream_offsets.partition IS 'Partition of the topic.';
COMMENT ON COLUMN stream_offsets.next_offset IS 'Offset of the first record that is not stored yet; -1 if none is.';
COMMENT ON COLUMN stream_offsets.epoch IS 'Counts the owners of the partition. It fences: an owner that was replaced can no longer write.';
COMMENT ON COLUMN stream_offsets.owner IS 'The process that took the partition most recently.';
COMMENT ON COLUMN stream_offsets.updated_at IS 'When this row was last written.';

-- +goose Down
DROP TABLE stream_offsets;
