// Command batchyard is the one binary: a pipeline for inference tasks, from a
// file on one machine to all stages as processes of their own.
//
// A file holds a command: its flags, its help and what it is wired to. What a
// command does lives in the package that it is wired to.
//
// Exit codes: 0 the work is done; 1 it did not succeed; 2 wrong usage or
// configuration; 3 a service cannot be reached. Errors are lines on standard
// error that begin with "batchyard: ".
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

// Version is set by the linker; empty: that of package batchyard.
var version string

func main() {
	if err := fault.Arm(); err != nil { // only in a build for tests of dying
		fmt.Fprintf(os.Stderr, "batchyard: %v\n", err)
		os.Exit(cli.ExitUsage)
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals // somebody is in a hurry: what was running is as after a crash
		os.Exit(cli.ExitFailed)
	}()
	os.Exit(run(ctx, newCLI(os.Stdin, os.Stdout, os.Stderr), os.Args[1:]))
}
