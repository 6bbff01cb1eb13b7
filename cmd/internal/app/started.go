package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// recordStart writes that this process has started, with a digest of its settings: a restart with other settings
// shows.
func (a *App) recordStart(ctx context.Context) {
	digest, err := a.digest()
	if err != nil {
		a.logger.Warn("could not compute the digest of the settings", "error", err)
	}
	e := task.Event{Action: task.ProcessStarted, ResourceType: "process", ResourceID: a.instance}
	a.record(ctx, e, map[string]any{"stages": a.names, "version": a.cfg.Version, "config_sha256": digest, "file": a.source.Path})
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
