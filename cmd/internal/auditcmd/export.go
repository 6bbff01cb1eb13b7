package auditcmd

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/internal/text"
)

// exportFlags are the flags of audit export.
type exportFlags struct {
	output       string
	ocsf, hashes bool
}

func auditExportCommand(c *cli.Env) *cobra.Command {
	var s searchFlags
	var e exportFlags
	cmd := &cobra.Command{
		Use: "export", Short: "Write the audit log to a file",
		Long: `Writes the rows that match the filters, or all rows, oldest first: one JSON object
per line, named after the columns of the table. The rows are a snapshot of the log.

With --ocsf each line is an event of the Open Cybersecurity Schema Framework, class
API Activity (6003), which collectors of security events read; columns without a
place in it are under unmapped.

The file appears once it is complete. It is compressed if its name ends in .gz.`,
		Example: `  batchyard audit export --since 2026-01-01 --until 2026-02-01 -o january.jsonl.gz
  batchyard audit export --ocsf --since 24h | curl --data-binary @- https://collector.example.com/ocsf
  batchyard audit export --hashes -o all.jsonl.gz`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := s.search(c.Now())
			if err != nil {
				return err
			}
			if e.output == "" {
				return cli.UsageError("-o is empty; name a file, or omit it for standard output")
			}
			f.Oldest = true
			return auditExport(cmd.Context(), c, s.postgres, f, &e)
		},
	}
	s.flags(c, cmd)
	cmd.Flags().StringVarP(&e.output, "output", "o", "-", "`file` to write; -: standard output")
	cmd.Flags().BoolVar(&e.ocsf, "ocsf", false, "write OCSF events")
	cmd.Flags().BoolVar(&e.hashes, "hashes", false, "also write chain_seq, prev_hash and row_hash")
	return cmd
}

func auditExport(ctx context.Context, c *cli.Env, url string, f query.Filter, e *exportFlags) error {
	return withPostgres(ctx, c, url, func(pool *pgxpool.Pool, _ app.Config) error {
		n := int64(0)
		err := writeOutput(c.Out, e.output, func(w io.Writer) error {
			enc := json.NewEncoder(text.JSONLines(w))
			enc.SetEscapeHTML(false)
			return logError(query.NewReader(pool).Search(ctx, f, func(r *query.Row) error {
				n++
				var line any = r
				if e.ocsf {
					o := r.OCSF(c.Version)
					if e.hashes {
						o.AddChain(r)
					}
					line = o
				} else if !e.hashes {
					r.ChainSeq, r.PrevHash, r.RowHash = 0, nil, nil
				}
				if err := enc.Encode(line); err != nil {
					return fmt.Errorf("writing row %s/%d@%d: %w", r.SrcTopic, r.SrcPartition, r.SrcOffset, err)
				}
				return nil
			}))
		})
		if err == nil && e.output != "-" {
			_, _ = fmt.Fprintf(c.Err, "%s written to %s\n", cli.Counted(n, "row"), e.output)
		}
		return err
	})
}

// writeOutput calls fn with a file that gets its name only when fn succeeds, so that
// a partial export never looks complete. "-" is standard output.
func writeOutput(stdout io.Writer, path string, fn func(io.Writer) error) error {
	if path == "-" {
		w := bufio.NewWriterSize(stdout, 256<<10)
		if err := fn(w); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		return nil
	}
	if at, err := os.Stat(path); err == nil && !at.Mode().IsRegular() {
		return writeInto(path, fn)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("making %s: %w", path, withoutPath(err)))
	}
	done := false
	defer func() {
		if !done {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	w := bufio.NewWriterSize(file, 256<<10)
	var into io.Writer = w
	finish := func() error { return nil }
	if strings.HasSuffix(path, ".gz") {
		zip := gzip.NewWriter(w)
		into, finish = zip, zip.Close
	}
	if err := fn(into); err != nil {
		return err
	}
	for _, step := range []func() error{finish, w.Flush, file.Sync, file.Close, func() error { return os.Rename(file.Name(), path) }} {
		if err := step(); err != nil {
			return fmt.Errorf("writing %s: %w", path, withoutPath(err))
		}
	}
	done = true
	return nil
}

// withoutPath strips the path from a file error: it would name the temporary file.
func withoutPath(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	if at, ok := errors.AsType[*os.LinkError](err); ok {
		return at.Err
	}
	return err
}

// writeInto calls fn with the device or pipe at the path, which must not be replaced
// by a file.
func writeInto(path string, fn func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("opening %s: %w", path, err))
	}
	w := bufio.NewWriterSize(file, 256<<10)
	if err := fn(w); err != nil {
		_ = file.Close()
		return err
	}
	for _, step := range []func() error{w.Flush, file.Close} {
		if err := step(); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}
