package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// recordStart writes that this process has started, with a digest of its settings: a restart with other settings
// shows. If Kafka does not take it in time, the log says so and the process goes on.
func (a *App) recordStart(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	digest, err := a.digest()
	if err != nil {
		a.logger.Warn("could not compute the digest of the settings", "error", err)
	}
	p := a.Producer()
	e := task.Event{
		Action: task.ProcessStarted, Outcome: task.OutcomeOK, Tenant: task.DefaultTenant, ActorType: task.ActorStage, ActorID: a.actor("serve"),
		ResourceType: "process", ResourceID: a.instance,
	}
	err = p.RecordNow(ctx, e, map[string]any{"stages": a.names, "version": a.cfg.Version, "config_sha256": digest, "file": a.source.Path})
	if err = errors.Join(err, p.Close(ctx)); err != nil && ctx.Err() == nil {
		a.logger.Warn("could not record the start of this process: it may be missing from the audit log", "error", err)
	}
}

// digest returns the SHA-256 of the settings as `batchyard config print` prints them, without secrets.
func (a *App) digest() (string, error) {
	var b bytes.Buffer
	cfg := a.cfg
	if err := config.WriteYAML(&b, &cfg, config.Plain); err != nil {
		return "", fmt.Errorf("writing the settings: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b.Bytes())), nil
}
