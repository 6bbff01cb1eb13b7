-- +goose Up
-- Partitions are made and dropped by functions that act as the owner of the schema, so that whoever records needs no
-- right to create, alter or drop anything. They look for tables in the schema that they are in and nowhere else.

-- +goose StatementBegin
-- Drops what the log holds of one UTC day: its partition, or, when it has none, its rows in the default partition.
-- Each run of consecutive rows of a chain is noted in audit_dropped in the same transaction. A run ends where the chain
-- is broken, so that dropping hides nothing.
--
-- Writers of that day wait meanwhile (there are hardly any: it is over for long); everybody else does only while the
-- table is dropped. Set lock_timeout: the last lock waits for queries that are running, and others queue behind it.
CREATE FUNCTION batchyard_drop_audit_partition(day date, OUT dropped bigint, OUT chained bigint, OUT runs bigint)
LANGUAGE plpgsql AS $$
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

-- Whoever calls them may have tables of the same names, in a schema of his own or temporary ones: those are not meant.
-- +goose StatementBegin
DO $$
DECLARE f text;
BEGIN
    FOREACH f IN ARRAY ARRAY['batchyard_make_audit_partition(date)', 'batchyard_drop_audit_partition(date)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp', f, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION batchyard_drop_audit_partition(date);
ALTER FUNCTION batchyard_make_audit_partition(date) SECURITY INVOKER RESET search_path;
GRANT EXECUTE ON FUNCTION batchyard_make_audit_partition(date) TO PUBLIC;
