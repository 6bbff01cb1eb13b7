package auditcmd

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/witness"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

type witnessFlags struct {
	dir, name, listen string
	logs, files       []string
	key               bool
}

func auditWitnessCommand(c *cli.Env) *cobra.Command {
	var f witnessFlags
	cmd := &cobra.Command{
		Use: "witness", Short: "Cosign the checkpoints of recorders, on a machine of someone else",
		Long: `Runs a witness (c2sp.org/tlog-witness). It cosigns a checkpoint of a log that it knows
if the log has only grown since the one that it cosigned last. So someone with the
database, Kafka and the recorder's key cannot replace what was cosigned: run it where
they have no access.

--dir keeps its key and the newest checkpoint of each log. The state is on disk before a
cosignature is sent. Do not restore it from an older backup, and never copy it: two
witnesses with one key could be shown two histories.

Give the recorders its key, which it prints, and its URL in audit.witnesses. Give it the
keys of their logs: log.vkey in audit.checkpoint_dir. It speaks HTTP; put a proxy in
front of it for TLS.`,
		Example: `  batchyard audit witness --dir /var/lib/witness --name witness.example.com --log "$(cat log.vkey)"
  batchyard audit witness --dir /var/lib/witness --name witness.example.com --key`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return runWitness(cmd.Context(), c, &f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "dir", "witness", "`directory` of the key and the state; it is created")
	fl.StringVar(&f.name, "name", "", "`name` of the witness: a URL without a scheme that belongs to you; never change it")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8390", "`address` to listen on")
	fl.StringArrayVar(&f.logs, "log", nil, "`key` of a log, as in log.vkey; repeatable")
	fl.StringArrayVar(&f.files, "logs", nil, "`file` with keys of logs, one a line; repeatable")
	fl.BoolVar(&f.key, "key", false, "print the witness's own key and exit")
	return cmd
}

// logKeys returns the keys of the logs.
func (f *witnessFlags) logKeys() ([]string, error) {
	keys := f.logs
	for _, path := range f.files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading the keys of logs: %w", err)
		}
		lines := bufio.NewScanner(strings.NewReader(string(b)))
		for lines.Scan() {
			if l := strings.TrimSpace(lines.Text()); l != "" && !strings.HasPrefix(l, "#") {
				keys = append(keys, l)
			}
		}
	}
	return keys, nil
}

func runWitness(ctx context.Context, c *cli.Env, f *witnessFlags) error {
	if f.name == "" {
		return cli.UsageError("--name is missing: write a URL without a scheme that belongs to you, such as witness.example.com")
	}
	if err := os.MkdirAll(f.dir, 0o750); err != nil {
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("creating the directory of the witness: %w", err))
	}
	key, err := audit.LoadSigningKey(filepath.Join(f.dir, "witness.key"))
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	own, err := audit.WitnessKey(f.name, key.Public().(ed25519.PublicKey)) //nolint:errcheck // Ed25519 keys have no other
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	if f.key {
		c.Printf("%s\n", own)
		return nil
	}
	logs, err := f.logKeys()
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	if len(logs) == 0 {
		return cli.UsageError("no log to watch: name the content of log.vkey in the recorder's audit.checkpoint_dir with --log")
	}
	s, err := witness.New(witness.Config{Name: f.name, Key: key, Dir: f.dir, Logs: logs, Logger: slog.New(slog.NewTextHandler(c.Err, nil))})
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	return errors.Join(serveWitness(ctx, c, f.listen, own, s), s.Close())
}

func serveWitness(ctx context.Context, c *cli.Env, listen, own string, s *witness.Server) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("listening for checkpoints: %w; check --listen", err))
	}
	c.Printf("key: %s\nlistening on http://%s\n", own, l.Addr())
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving checkpoints: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return srv.Shutdown(stop)
}
