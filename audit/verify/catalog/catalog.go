// Package catalog compares the definitions in a database with those that the migrations make: tables and
// their columns, constraints, views, functions, triggers, rules, policies, and the partitions of the log.
// Someone with enough rights can show people another log than the one that is verified, by replacing one.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/migrations"
)

// maxFound bounds what is reported of each kind.
const maxFound = 100

// Check compares a schema. found says what is not as the migrations define it, each as a sentence;
// unproven why it could not be compared. seen is what a recorder has signed about the schema; nil:
// nothing. The search path of the transaction must have no schema but pg_catalog.
func Check(ctx context.Context, tx pgx.Tx, schema string, seen *audit.SchemaVersion) (found []string, unproven string, err error) {
	have, server, err := migrations.ReadDefinitions(ctx, tx, schema)
	if err != nil {
		return nil, "", err
	}
	known, err := migrations.KnownDefinitions(server)
	if err != nil {
		return nil, "", err
	}
	digest := have.Digest()
	switch {
	case known != nil:
		found = compare(have, known)
	case seen != nil && seen.Server == server && seen.Version == migrations.Needed():
		if seen.Definitions != digest {
			found = append(found, fmt.Sprintf("the definitions of tables, views and functions are not those that a recorder found and signed: their digest is %s, and was %s", digest, seen.Definitions))
		}
		unproven = fmt.Sprintf("this program does not know how Postgres %d prints the definitions of the migrations; they were compared only with what a recorder found", server)
	default:
		unproven = fmt.Sprintf("this program does not know how Postgres %d prints the definitions of the migrations", server)
	}
	names, err := knownAnywhere()
	if err != nil {
		return nil, "", err
	}
	ourNames := slices.Sorted(maps.Keys(relations(names, have)))
	for _, ask := range []struct{ sql, what string }{
		{shadowsSQL, "%s exists in another schema too: a search path may show people that one"},
		{partitionsSQL, "%s is not as the recorder creates partitions"},
		{settingsSQL, "%s: sessions see other tables or values than those that are verified"},
		{functionsSQL, "%s hides the function of Postgres with that name"},
		{eventTriggersSQL, "the %s is not from the migrations"},
		{triggersSQL, "the %s is not from the migrations, and pretends to be internal"},
		{optionsSQL, "the %s, which no migration gives it"},
		{ownersSQL, "the %s"},
		{indexesSQL, "the %s may lack rows: it is not valid, not ready or not live"},
		{operatorsSQL, "the %s is neither Postgres' nor from the migrations"},
		{castsSQL, "the %s is neither Postgres' nor from the migrations"},
		{strangersSQL, "the %s did not come with Postgres"},
		{hiddenSQL, "the %s has a condition that its text does not show"},
	} {
		more, err := list(ctx, tx, ask.sql, schema, ourNames)
		if err != nil {
			return nil, "", err
		}
		for _, m := range more {
			found = append(found, fmt.Sprintf(ask.what, m))
		}
	}
	for _, compare := range []func() ([]string, string, error){
		func() ([]string, string, error) {
			f, err := hiddenFunctions(ctx, tx, schema, ourNames)
			return f, "", err
		},
		func() ([]string, string, error) { f, err := compareVersions(ctx, tx, schema); return f, "", err },
		func() ([]string, string, error) { return compareBuiltins(ctx, tx, server) },
	} {
		more, why, err := compare()
		if err != nil {
			return nil, "", err
		}
		found = append(found, more...)
		unproven = strings.Trim(unproven+"; "+why, "; ")
	}
	return found, unproven, nil
}

// locateSQL finds the log by the search path, whatever operators that has first.
const locateSQL = `
SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('audit_log')::pg_catalog.oid`

// Querier is a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Locate returns the schema of the log that the search path of the session leads to.
func Locate(ctx context.Context, q Querier) (schema string, err error) {
	switch err = q.QueryRow(ctx, locateSQL).Scan(&schema); {
	case errors.Is(err, pgx.ErrNoRows):
		return "", errors.New("relation audit_log does not exist: run `batchyard migrate up`")
	case err != nil:
		return "", fmt.Errorf("looking for audit_log: %w", err)
	}
	return schema, nil
}

// Shadows lists tables and views of other schemas with the name of one of ours. The search path of the
// transaction must begin with pg_catalog.
func Shadows(ctx context.Context, tx pgx.Tx, schema string) ([]string, error) {
	have, _, err := migrations.ReadDefinitions(ctx, tx, schema)
	if err != nil {
		return nil, err
	}
	known, err := knownAnywhere()
	if err != nil {
		return nil, err
	}
	return list(ctx, tx, shadowsSQL, schema, slices.Sorted(maps.Keys(relations(known, have))))
}

// knownAnywhere returns the definitions for any version of Postgres: the names are the same for all.
func knownAnywhere() (migrations.Definitions, error) {
	for server := 14; server < 40; server++ {
		if d, err := migrations.KnownDefinitions(server); d != nil || err != nil {
			return d, err
		}
	}
	return nil, nil
}

// compare returns the differences between two sets of definitions. An administrator may add tables, views,
// functions and indexes, but nothing to a table of ours.
func compare(have, known migrations.Definitions) (found []string) {
	tables := relations(known, nil)
	for _, name := range slices.Sorted(maps.Keys(known)) {
		switch text, ok := have[name]; {
		case len(found) == maxFound:
			return found
		case !ok:
			found = append(found, "the "+name+" is missing")
		case text != known[name]:
			found = append(found, "the "+name+" is not as the migrations define it")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		kind, of, _ := strings.Cut(name, " ")
		of, _, _ = strings.Cut(of, ".")
		if _, ok := known[name]; ok || len(found) == maxFound || kind == "index" || kind == "table" || kind == "view" {
			continue
		}
		if kind == "function" && strings.HasPrefix(of, "batchyard_") || tables[of] || strings.HasPrefix(of, "audit_log_2") && kind != "column" && kind != "constraint" {
			found = append(found, "the "+name+" is not from the migrations")
		}
	}
	return found
}

// relations returns the names of the tables and views of definitions.
func relations(all ...migrations.Definitions) map[string]bool {
	out := map[string]bool{}
	for _, d := range all {
		if len(d) == 0 {
			continue
		}
		for name := range d {
			kind, of, _ := strings.Cut(name, " ")
			if kind == "table" || kind == "view" {
				out[of] = true
			}
		}
		return out
	}
	return out
}

// shadowsSQL lists tables and views that have the name of one of ours ($2) in another schema than ours ($1).
// Those in pg_catalog come first in every search path.
const shadowsSQL = `
SELECT format('%s %I.%I', CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = ANY ($2::text[]) AND n.nspname <> $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_(temp|toast)' ORDER BY 1 LIMIT 100`

// partitionsSQL lists partitions of the log whose name, schema, kind or bounds are not those of a day.
const partitionsSQL = `
SELECT format('partition %I.%I', n.nspname, c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = (SELECT l.oid FROM pg_class l JOIN pg_namespace s ON s.oid = l.relnamespace WHERE s.nspname = $1 AND l.relname = 'audit_log') AND cardinality($2::text[]) >= 0
AND c.relname <> 'audit_log_default' AND (n.nspname <> $1 OR c.relkind <> 'r' OR c.relpersistence <> 'p' OR c.relrowsecurity OR i.inhdetachpending OR c.relname !~ '^audit_log_[0-9]{8}$'
	OR pg_get_expr(c.relpartbound, c.oid) <> format('FOR VALUES FROM (%L) TO (%L)', to_date(substr(c.relname, 11), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC', (to_date(substr(c.relname, 11), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC'))
ORDER BY 1 LIMIT 100`

// settingsSQL lists settings of the database, of its roles and of the server that change which tables, which rows, or which
// times a session sees. A time zone that has a name is fine: Postgres then prints the offset.
const settingsSQL = `
SELECT format('%s has the setting %s', CASE WHEN d.setrole = 0 THEN 'the database' ELSE 'the role ' || pg_get_userbyid(d.setrole) END, s) FROM pg_db_role_setting d CROSS JOIN unnest(d.setconfig) s
WHERE d.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) AND cardinality($2::text[]) >= 0
AND (s ~* '^(session_replication_role|role|session_authorization|local_preload_libraries|session_preload_libraries|row_security|intervalstyle|enable_[a-z_]*|constraint_exclusion|transform_null_equals|array_nulls|ignore_system_indexes|zero_damaged_pages|default_table_access_method)='
	OR s ~* '^datestyle=' AND s !~* '=iso\M'
	OR s ~* '^timezone=' AND lower(split_part(s, '=', 2)) <> 'utc' AND NOT EXISTS (SELECT FROM pg_timezone_names z WHERE lower(z.name) = lower(split_part(s, '=', 2)))
	OR s ~* '^search_path=' AND (array_remove(string_to_array(replace(split_part(s, '=', 2), '"', ''), ', '), '$user'))[1] IS DISTINCT FROM $1)
UNION ALL
SELECT format('the server has the setting %s=%s', name, reset_val) FROM pg_settings
WHERE name = 'session_replication_role' AND reset_val <> 'origin' OR name = 'ignore_system_indexes' AND reset_val = 'on' OR name = 'zero_damaged_pages' AND reset_val = 'on'
ORDER BY 1 LIMIT 100`

// functionsSQL lists functions in our schema, or in another that sessions find, with the name of one of Postgres'.
const functionsSQL = `
SELECT format('function %I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname <> 'pg_catalog' AND ` + reach + ` AND cardinality($2::text[]) >= 0
AND EXISTS (SELECT FROM pg_proc b WHERE b.pronamespace = 'pg_catalog'::regnamespace AND b.proname = p.proname AND b.oid < 16384)
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 100`

func list(ctx context.Context, tx pgx.Tx, sql, schema string, names []string) ([]string, error) {
	rows, err := tx.Query(ctx, sql, schema, names)
	if err != nil {
		return nil, fmt.Errorf("comparing the definitions of schema %s: %w", schema, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("comparing the definitions of schema %s: %w", schema, err)
	}
	return all, nil
}
