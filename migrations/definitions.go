package migrations

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The definitions that the migrations leave behind, as Postgres prints them: a file for each major version
// of Postgres whose text is known, because versions print the same view differently.
//
//go:embed definitions/*.json
var definitions embed.FS

// Definitions are what a schema consists of, by names such as "view user_actions" or
// "column audit_log.time".
type Definitions map[string]string

// Digest returns the SHA-256 of the definitions in hex.
func (d Definitions) Digest() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(d)) {
		_, _ = fmt.Fprintf(h, "%q %q\n", name, d[name]) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// KnownDefinitions returns the definitions that the migrations make with a major version of Postgres; nil
// if this program does not know how that version prints them.
func KnownDefinitions(server int) (Definitions, error) {
	b, err := definitions.ReadFile(fmt.Sprintf("definitions/%d.json", server))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d := Definitions{}
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the definitions for Postgres %d: %w", server, err)
	}
	return d, nil
}

// definitionsSQL reads the definitions of a schema ($1), without the daily partitions of audit_log and
// without what a migration does not define: owners, privileges, comments and statistics.
const definitionsSQL = `
WITH ours AS (
	SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relispartition FROM pg_catalog.pg_class c
	WHERE c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = $1) AND c.relname OPERATOR(pg_catalog.!~) '^audit_log_[0-9]{8}($|_)')
SELECT CASE c.relkind WHEN 'v' THEN 'view ' ELSE 'table ' END || c.relname,
	pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, CASE WHEN c.relrowsecurity THEN 'row security' END, pg_catalog.pg_get_partkeydef(c.oid), CASE WHEN c.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(c.oid) END)
	FROM ours c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
UNION ALL
SELECT 'column ' || c.relname || '.' || a.attname, pg_catalog.concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END, l.collname,
	pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity)
	FROM ours c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation AND l.collname <> 'default' LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
	WHERE c.relkind IN ('r', 'p', 'v', 'c')
UNION ALL
SELECT 'constraint ' || c.relname || '.' || k.conname, pg_catalog.concat_ws(' ', pg_catalog.pg_get_constraintdef(k.oid), CASE WHEN NOT k.convalidated THEN 'not valid' END)
	FROM ours c JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid WHERE k.contype <> 'n'
UNION ALL
SELECT 'index ' || c.relname || '.' || i.relname, pg_catalog.concat_ws(' ', pg_catalog.pg_get_indexdef(i.oid), CASE WHEN NOT (x.indisvalid AND x.indisready AND x.indislive) THEN 'invalid' END)
	FROM ours c JOIN pg_catalog.pg_index x ON x.indrelid = c.oid JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid WHERE NOT c.relispartition
UNION ALL
SELECT 'trigger ' || c.relname || '.' || t.tgname, t.tgenabled::text || ' ' || pg_catalog.pg_get_triggerdef(t.oid)
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid
	WHERE NOT t.tgisinternal AND c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = $1)
UNION ALL
SELECT 'rule ' || c.relname || '.' || r.rulename, r.ev_enabled::text || ' ' || pg_catalog.pg_get_ruledef(r.oid)
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid
	WHERE (c.relkind NOT IN ('v', 'm') OR r.rulename <> '_RETURN') AND c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = $1)
UNION ALL
SELECT 'policy ' || c.relname || '.' || p.polname, pg_catalog.concat_ws(' ', p.polcmd, pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_policy p ON p.polrelid = c.oid WHERE c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = $1)
UNION ALL
SELECT 'function ' || p.proname || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')', pg_catalog.pg_get_functiondef(p.oid)
	FROM pg_catalog.pg_proc p WHERE p.prokind IN ('f', 'p', 'w') AND p.pronamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = $1)
UNION ALL
SELECT 'child ' || p.relname || '.' || c.relname, pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, CASE WHEN i.inhdetachpending THEN 'detached' END, pg_catalog.pg_get_expr(c.relpartbound, c.oid))
	FROM ours p JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
	WHERE p.relkind <> 'I' AND c.relname OPERATOR(pg_catalog.!~) '^audit_log_[0-9]{8}$'`

// ReadDefinitions reads the definitions of a schema and the major version of the server, in the caller's
// transaction. It sets the search path of the transaction while it reads, so that Postgres prints names of
// the schema without it: the schema may have any name.
func ReadDefinitions(ctx context.Context, tx pgx.Tx, schema string) (d Definitions, server int, err error) {
	var before string
	if err = tx.QueryRow(ctx, "SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('server_version_num')::int4 / 10000").Scan(&before, &server); err != nil {
		return nil, 0, fmt.Errorf("reading the version of Postgres: %w", err)
	}
	path := func(to string) error {
		_, err := tx.Exec(ctx, "SELECT pg_catalog.set_config('search_path', $1, true)", to)
		return err
	}
	if err := path("pg_catalog, " + pgx.Identifier{schema}.Sanitize()); err != nil {
		return nil, 0, fmt.Errorf("reading the definitions of schema %s: %w", schema, err)
	}
	rows, err := tx.Query(ctx, definitionsSQL, schema)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the definitions of schema %s: %w", schema, err)
	}
	d = Definitions{}
	var name, text string
	_, err = pgx.ForEachRow(rows, []any{&name, &text}, func() error {
		// Functions of ours pin the search path to the schema, and index definitions name their table
		// with it.
		text = strings.ReplaceAll(text, pgx.Identifier{schema}.Sanitize(), "SCHEMA")
		d[name] = replaceWord(text, schema)
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading the definitions of schema %s: %w", schema, err)
	}
	return d, server, path(before)
}

// replaceWord replaces the name of the schema where Postgres prints it without double quotes.
func replaceWord(text, schema string) string {
	for _, at := range [][2]string{{" " + schema + ".", " SCHEMA."}, {"'" + schema + "'", "'SCHEMA'"}} {
		text = strings.ReplaceAll(text, at[0], at[1])
	}
	return text
}
