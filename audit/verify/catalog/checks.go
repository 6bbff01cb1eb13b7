package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/migrations"
)

// These queries find what shows people, or the processes that write, something else than the rows, without changing a
// definition as Postgres prints it. All take the schema ($1) and the names of our tables and views ($2). Objects of
// extensions are left out where an extension may well have them.

// ours are our tables and views, and the partitions of the log wherever they are.
const ours = `WITH ours AS (SELECT c.oid, c.relname, c.relkind, c.relowner, c.reloptions FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v') AND (n.nspname = $1 AND c.relname = ANY ($2::text[]) OR EXISTS (SELECT FROM pg_inherits i JOIN pg_class l ON l.oid = i.inhparent JOIN pg_namespace s ON s.oid = l.relnamespace
	WHERE i.inhrelid = c.oid AND l.relname = 'audit_log' AND s.nspname = $1))) `

// reach are the schemas that the search path of a session usually leads to: ours, Postgres', public, and those with
// the name of a role.
const reach = `(n.nspname IN ($1, 'pg_catalog', 'public') OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.nspname))`

// eventTriggersSQL lists event triggers; no migration makes one.
const eventTriggersSQL = `SELECT format('event trigger %I (on %s)', e.evtname, e.evtevent) FROM pg_event_trigger e WHERE $1::text IS NOT NULL AND cardinality($2::text[]) >= 0
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 100`

// triggersSQL lists triggers that are marked as Postgres' own, which tools do not show, and belong to no constraint.
const triggersSQL = ours + `SELECT format('trigger %I.%I', c.relname, t.tgname) FROM pg_trigger t JOIN ours c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgisinternal AND (p.oid >= 16384 OR NOT EXISTS (SELECT FROM pg_constraint k WHERE k.oid = t.tgconstraint)) ORDER BY 1 LIMIT 100`

// optionsSQL lists views with options: they decide with whose rights a view reads, and no migration sets one.
const optionsSQL = ours + `SELECT format('view %I has the options %s', c.relname, array_to_string(c.reloptions, ', ')) FROM ours c WHERE c.relkind = 'v' AND c.reloptions IS NOT NULL ORDER BY 1 LIMIT 100`

// ownersSQL lists what does not belong to the owner of the log: a view reads, and some functions write, with the
// rights of their owners.
const ownersSQL = ours + `, owner AS (SELECT relowner FROM ours WHERE relname = 'audit_log'),
owned AS (SELECT CASE relkind WHEN 'v' THEN 'view ' ELSE 'table ' END || relname AS what, relowner AS by FROM ours
	UNION ALL SELECT 'function ' || p.proname, p.proowner FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $1 AND p.proname LIKE 'batchyard\_%')
SELECT DISTINCT format('%s belongs to %s, and audit_log to %s', what, pg_get_userbyid(by), pg_get_userbyid(o.relowner)) FROM owned, owner o WHERE by <> o.relowner ORDER BY 1 LIMIT 100`

// indexesSQL lists indexes that may not hold all rows, also those that are being built.
const indexesSQL = ours + `SELECT format('index %I of %I', i.relname, c.relname) FROM pg_index x JOIN ours c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
WHERE NOT (x.indisvalid AND x.indisready AND x.indislive) ORDER BY 1 LIMIT 100`

// operatorsSQL lists operators that sessions find first, or as well as those of Postgres.
const operatorsSQL = `SELECT format('operator %s.%s (%s, %s)', n.nspname, o.oprname, format_type(nullif(o.oprleft, 0), NULL), format_type(nullif(o.oprright, 0), NULL)) FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE o.oid >= 16384 AND cardinality($2::text[]) >= 0 AND ` + reach + ` AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 100`

// castsSQL lists casts between types of Postgres that Postgres did not make.
const castsSQL = `SELECT format('cast from %s to %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) FROM pg_cast c
WHERE c.oid >= 16384 AND c.castsource < 16384 AND c.casttarget < 16384 AND $1::text IS NOT NULL AND cardinality($2::text[]) >= 0
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 100`

// strangersSQL lists what is in pg_catalog without having come with Postgres or an extension.
const strangersSQL = `SELECT what FROM (
	SELECT format('function pg_catalog.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), p.oid, 'pg_proc'::regclass, p.pronamespace FROM pg_proc p
	UNION ALL SELECT format('type pg_catalog.%I', t.typname), t.oid, 'pg_type'::regclass, t.typnamespace FROM pg_type t
	UNION ALL SELECT format('relation pg_catalog.%I', c.relname), c.oid, 'pg_class'::regclass, c.relnamespace FROM pg_class c) s (what, oid, class, space)
WHERE s.oid >= 16384 AND s.space = 'pg_catalog'::regnamespace AND $1::text IS NOT NULL AND cardinality($2::text[]) >= 0
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = s.class AND d.objid = s.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 100`

// hiddenSQL lists views whose stored query has what Postgres does not print: conditions of row security, and a rule with
// a condition.
const hiddenSQL = ours + `SELECT format('view %I', c.relname) FROM pg_rewrite r JOIN ours c ON c.oid = r.ev_class
WHERE c.relkind = 'v' AND r.rulename = '_RETURN' AND (r.ev_action::text LIKE '%:securityQuals (%' OR r.ev_action::text LIKE '%:withCheckOptions (%' OR r.ev_action::text LIKE '%:hasRowSecurity true%' OR r.ev_qual::text <> '<>') ORDER BY 1 LIMIT 100`

// rewritesSQL returns the stored queries of our views.
const rewritesSQL = ours + `SELECT c.relname::text, r.ev_action::text FROM pg_rewrite r JOIN ours c ON c.oid = r.ev_class ORDER BY 1`

// operation is where a stored query says which operator it applies, and which function Postgres calls for it.
var operation = regexp.MustCompile(`:opno (\d+) :opfuncid (\d+)`)

// hiddenFunctions finds views that call another function for an operator than the one it has: their text shows the
// operator only.
func hiddenFunctions(ctx context.Context, tx pgx.Tx, schema string, names []string) (found []string, err error) {
	functions := map[string]string{"0": "0"}
	rows, err := tx.Query(ctx, "SELECT oid::text, oprcode::oid::text FROM pg_operator")
	if err != nil {
		return nil, fmt.Errorf("reading the operators: %w", err)
	}
	var a, b string
	if _, err := pgx.ForEachRow(rows, []any{&a, &b}, func() error { functions[a] = b; return nil }); err != nil {
		return nil, fmt.Errorf("reading the operators: %w", err)
	}
	if rows, err = tx.Query(ctx, rewritesSQL, schema, names); err != nil {
		return nil, fmt.Errorf("reading the queries of views: %w", err)
	}
	_, err = pgx.ForEachRow(rows, []any{&a, &b}, func() error {
		for _, m := range operation.FindAllStringSubmatch(b, -1) {
			if m[2] != "0" && functions[m[1]] != m[2] {
				found = append(found, fmt.Sprintf("the view %s calls another function for an operator than its text shows", a))
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the queries of views: %w", err)
	}
	return found, nil
}

// versionsSQL returns which migrations were applied, according to the database.
const versionsSQL = `SELECT coalesce(string_agg(coalesce(version_id::text, '?') || CASE WHEN is_applied THEN '' ELSE ' (not applied)' END, ', ' ORDER BY version_id), 'none') FROM `

// compareVersions compares the table of applied migrations with what this program has.
func compareVersions(ctx context.Context, tx pgx.Tx, schema string) (found []string, err error) {
	var have string
	table := pgx.Identifier{schema, "batchyard_schema"}.Sanitize()
	if err := tx.QueryRow(ctx, versionsSQL+table).Scan(&have); err != nil {
		return nil, fmt.Errorf("reading batchyard_schema: %w", err)
	}
	want := make([]string, 0, 16)
	for v := range migrations.Needed() + 1 {
		want = append(want, fmt.Sprint(v))
	}
	if have != strings.Join(want, ", ") {
		found = append(found, fmt.Sprintf("batchyard_schema says that these migrations were applied: %s; this program has %s", have, strings.Join(want, ", ")))
	}
	return found, nil
}

// builtin is a part of the system catalog that comes with Postgres and is the same for a major version. What initdb adds
// (from 12000 on) may differ between minor versions.
type builtin struct{ what, sql string }

var builtins = []builtin{
	{"functions", `SELECT p.oid::regprocedure::text, concat_ws('|', p.oid, p.pronamespace, l.lanname, p.prokind, p.prosecdef, p.proleakproof, p.proisstrict, p.proretset, p.provolatile, p.prorettype, p.proargtypes, p.proargmodes, p.prosrc, p.probin, p.proconfig, pg_get_function_sqlbody(p.oid)), age(p.xmin)
		FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid < 12000 ORDER BY p.oid`},
	{"operators", `SELECT o.oid::regoperator::text, concat_ws('|', o.oid, o.oprname, o.oprnamespace, o.oprkind, o.oprcanmerge, o.oprcanhash, o.oprleft, o.oprright, o.oprresult, o.oprcom, o.oprnegate, o.oprcode::oid, o.oprrest::oid, o.oprjoin::oid), age(o.xmin) FROM pg_operator o WHERE o.oid < 12000 ORDER BY o.oid`},
	{"types", `SELECT t.typname::text, concat_ws('|', t.oid, t.typname, t.typnamespace, t.typlen, t.typbyval, t.typtype, t.typcategory, t.typdelim, t.typelem, t.typinput::oid, t.typoutput::oid, t.typreceive::oid, t.typsend::oid, t.typmodin::oid, t.typmodout::oid, t.typalign, t.typbasetype), age(t.xmin)
		FROM pg_type t WHERE t.oid < 12000 AND t.typrelid = 0 AND t.typname !~ '^_pg_' ORDER BY t.oid`},
	{"casts", `SELECT format('%s to %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)), concat_ws('|', c.castsource, c.casttarget, c.castfunc, c.castcontext, c.castmethod), age(c.xmin) FROM pg_cast c WHERE c.oid < 12000 ORDER BY c.castsource, c.casttarget`},
	{"aggregates", `SELECT a.aggfnoid::text, concat_ws('|', a.aggfnoid::oid, a.aggkind, a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid, a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid, a.aggmfinalfn::oid, a.aggsortop, a.aggtranstype, a.agginitval), age(a.xmin) FROM pg_aggregate a WHERE a.aggfnoid::oid < 12000 ORDER BY a.aggfnoid::oid`},
	{"support functions of indexes", `SELECT format('%s of %s', a.amproc::text, f.opfname), concat_ws('|', a.amprocfamily, a.amproclefttype, a.amprocrighttype, a.amprocnum, a.amproc::oid), age(a.xmin) FROM pg_amproc a JOIN pg_opfamily f ON f.oid = a.amprocfamily WHERE a.amprocfamily < 12000 AND a.amproc::oid < 12000 ORDER BY 2`},
	{"operators of indexes", `SELECT format('%s of %s', a.amopopr::regoperator::text, f.opfname), concat_ws('|', a.amopfamily, a.amoplefttype, a.amoprighttype, a.amopstrategy, a.amoppurpose, a.amopopr, a.amopmethod), age(a.xmin) FROM pg_amop a JOIN pg_opfamily f ON f.oid = a.amopfamily WHERE a.amopfamily < 12000 AND a.amopopr < 12000 ORDER BY 2`},
}

// builtinDigests are the beginnings of the SHA-256 of each part, by major version.
var builtinDigests = map[int][]string{
	15: {"637fbd59e8f4bdce89f8b6edb9864d95", "1be82c01c27b1dfba75c93a158253a8a", "e15b1a65fcd4ed9420ecd1ed1e007aee", "8c85c9a2fcd3c73595918ad2383bb3b8", "e588d21bb0596efc5a554e35f6ff5bd5", "4dd12e0db375dcd3fe38901863eebf6f", "978cf0d28541723f9a8247b3007aedba"},
}

// Builtins returns a digest of each part of the system catalog, and of each which entries were changed last.
func Builtins(ctx context.Context, tx pgx.Tx) (digests []string, last [][]string, err error) {
	for _, b := range builtins {
		rows, err := tx.Query(ctx, b.sql)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the %s of Postgres: %w", b.what, err)
		}
		h := sha256.New()
		type entry struct {
			name string
			age  int32
		}
		var all []entry
		var name, text string
		var age int32
		if _, err := pgx.ForEachRow(rows, []any{&name, &text, &age}, func() error {
			_, _ = fmt.Fprintf(h, "%q\n", text) // a hash never fails
			all = append(all, entry{name, age})
			return nil
		}); err != nil {
			return nil, nil, fmt.Errorf("reading the %s of Postgres: %w", b.what, err)
		}
		slices.SortStableFunc(all, func(a, b entry) int { return int(a.age) - int(b.age) })
		var newest []string
		for _, e := range all[:min(3, len(all))] {
			newest = append(newest, e.name)
		}
		digests, last = append(digests, hex.EncodeToString(h.Sum(nil)[:16])), append(last, newest)
	}
	return digests, last, nil
}

// compareBuiltins compares the system catalog with that of the same version of Postgres elsewhere.
func compareBuiltins(ctx context.Context, tx pgx.Tx, server int) (found []string, unproven string, err error) {
	want := builtinDigests[server]
	if want == nil {
		return nil, fmt.Sprintf("this program does not know the system catalog of Postgres %d: whether its functions, operators and types were changed was not compared", server), nil
	}
	have, last, err := Builtins(ctx, tx)
	if err != nil {
		return nil, "", err
	}
	for i, b := range builtins {
		if have[i] != want[i] {
			found = append(found, fmt.Sprintf("the built-in %s are not those of Postgres %d; last changed: %s", b.what, server, strings.Join(last[i], "; ")))
		}
	}
	return found, "", nil
}
