// Command batchyard is the one binary: a pipeline for inference tasks, from a
// file on one machine to all stages as processes of their own.
//
// A file holds a command: its flags, its help, and the package that does the work.
// Commands share the kit in cmd/internal/cli; audit, ledger and bench have packages of
// their own beside it.
//
// Exit codes: 0 done; 1 the work did not succeed; 2 wrong usage or configuration;
// 3 a service cannot be reached; 130 interrupted. Errors are lines on standard error that start with
// "batchyard: ".
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/internal/fault"
)

// version is set by the linker. If it is empty, the version is that of package batchyard.
var version string

func main() {
	if err := fault.Arm(); err != nil { // does something only in a build for crash tests
		fmt.Fprintf(os.Stderr, "batchyard: %v\n", err)
		os.Exit(cli.ExitUsage)
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals // a second signal ends the program at once, which is as safe as a crash
		os.Exit(cli.ExitInterrupted)
	}()
	os.Exit(run(ctx, newCLI(os.Stdin, os.Stdout, os.Stderr), os.Args[1:]))
}
