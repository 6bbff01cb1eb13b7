// Command auditgen fills an empty database with made-up rows of an installation
// that has run for a month, and measures the examples of docs/sql.md on it.
//
//	batchyard migrate up
//	go run ./bench/auditgen load  -postgres URL -rows 50000000
//	go run ./bench/auditgen views -postgres URL -plans docs/sql-plans.md
//
// The rows, their hash chains and the rollups are made by the recorder's own
// code, so `batchyard audit verify` holds on them, and what is measured is what a
// recorder would have left.
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

var errUsage = errors.New("say what to do: auditgen load … or auditgen views …; -h tells the flags")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	fl := flag.NewFlagSet("auditgen "+args[0], flag.ContinueOnError)
	url := fl.String("postgres", os.Getenv("BATCHYARD_POSTGRES_URL"), "URL of a database of its own (BATCHYARD_POSTGRES_URL)")
	switch args[0] {
	case "load":
		o := loadOptions{Out: os.Stdout, Now: time.Now().UTC()}
		fl.Int64Var(&o.Rows, "rows", 50_000_000, "audit rows, about")
		fl.IntVar(&o.Days, "days", 30, "days before now over which they are spread")
		fl.IntVar(&o.Partitions, "partitions", 8, "partitions of events, each with its chain")
		fl.IntVar(&o.Workers, "workers", 4, "partitions that are made at the same time")
		fl.Uint64Var(&o.Seed, "seed", 1, "what the rows are made from: the same seed, the same installation")
		if err := fl.Parse(args[1:]); err != nil {
			return err
		}
		o.URL = *url
		return load(ctx, o)
	case "views":
		o := viewOptions{Out: os.Stdout}
		fl.StringVar(&o.Docs, "docs", "docs/sql.md", "the page with the examples")
		fl.StringVar(&o.Plans, "plans", "", "where to write times and plans, such as docs/sql-plans.md; empty: nowhere")
		fl.StringVar(&o.Cold, "cold", "", "a command that empties the caches (restarts Postgres); run before each example's first time")
		fl.StringVar(&o.Note, "note", "", "a sentence for the page about where it was measured")
		fl.IntVar(&o.Repeat, "repeat", 20, "how often each example runs")
		if err := fl.Parse(args[1:]); err != nil {
			return err
		}
		o.URL = *url
		return views(ctx, o)
	}
	return errUsage
}
