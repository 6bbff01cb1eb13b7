// Command auditgen fills an empty database with the made-up rows of an installation
// that has run for a month, and measures the examples of docs/sql.md on it.
//
//	batchyard migrate up
//	go run ./bench/auditgen load  -postgres URL -rows 50000000
//	go run ./bench/auditgen views -postgres URL -plans docs/sql-plans.md
//
// The recorder's own code writes the rows, their hash chains and the rollups, so
// `batchyard audit verify` finds nothing wrong on them and the measurements are realistic.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "auditgen:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("missing or unknown command: use auditgen load … or auditgen views …; -h lists the flags")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	fl := flag.NewFlagSet("auditgen "+args[0], flag.ContinueOnError)
	url := fl.String("postgres", os.Getenv("BATCHYARD_POSTGRES_URL"), "URL of a dedicated database (default: $BATCHYARD_POSTGRES_URL)")
	switch args[0] {
	case "load":
		o := loadOptions{Out: os.Stdout, Now: time.Now().UTC()}
		fl.Int64Var(&o.Rows, "rows", 50_000_000, "approximate number of audit rows")
		fl.IntVar(&o.Days, "days", 30, "number of days, up to now, to spread them over")
		fl.IntVar(&o.Partitions, "partitions", 8, "partitions of the events topic, each with its own hash chain")
		fl.IntVar(&o.Workers, "workers", 4, "partitions to generate at the same time")
		fl.Uint64Var(&o.Seed, "seed", 1, "seed of the random numbers: the same seed gives the same installation")
		if err := fl.Parse(args[1:]); err != nil {
			return err
		}
		o.URL = *url
		return load(ctx, o)
	case "views":
		o := viewOptions{Out: os.Stdout}
		fl.StringVar(&o.Docs, "docs", "docs/sql.md", "the page with the examples")
		fl.StringVar(&o.Plans, "plans", "", "page to write times and plans to, such as docs/sql-plans.md (default: none)")
		fl.StringVar(&o.Cold, "cold", "", "a command that empties the caches (restarts Postgres), run before each example")
		fl.StringVar(&o.Note, "note", "", "a sentence for the page that says where it was measured")
		fl.IntVar(&o.Repeat, "repeat", 20, "runs of each example")
		if err := fl.Parse(args[1:]); err != nil {
			return err
		}
		o.URL = *url
		return views(ctx, o)
	}
	return errUsage
}
