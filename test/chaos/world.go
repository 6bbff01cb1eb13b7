package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/chaos/process"
	"github.com/batchyard/batchyard/test/chaos/services"
	"github.com/batchyard/batchyard/test/chaos/tape"
	"github.com/batchyard/batchyard/test/harness"
)

// world is everything that runs.
type world struct {
	dir   string // for logs, plan and summary, which are kept
	begin time.Time
	bin   string

	kafka, redis, postgres *services.Service // nil if they are clusters
	cluster                *cluster          // nil if they are not
	disk                   *services.Disk
	proxies                *services.Proxies
	load                   *load
	recreated              bool // tasks.low; what it held is gone
	tape                   *tape.Tape
	removed                removals // of records that were not read
	lacking                lacking
	profile                *profile
	fleet                  *fleet.Fleet
	silent                 sync.Map // device id → true: sends no heartbeats
	busy                   sync.Map // target → mutex held while it is broken
	leftOut                atomic.Int64
	standing               string // the tenant whose tasks stand; empty: none
	ports                  services.Ports

	mu        sync.Mutex
	processes map[string]*process.Process
	gone      []*process.Process // third processes, which have left

	pool   *pgxpool.Pool // bypasses the proxies
	rdb    redis.UniversalClient
	client *kgo.Client
	closes []func()
	logMu  sync.Mutex
	log    *os.File
}

// say logs a line with the time since the start of the chaos.
func (w *world) say(format string, args ...any) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	line := fmt.Sprintf("%6.1fs  %s\n", time.Since(w.begin).Seconds(), fmt.Sprintf(format, args...))
	_, _ = os.Stdout.WriteString(line) // best effort
	_, _ = w.log.WriteString(line)     // best effort
}

func (w *world) process(name string) *process.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.processes[name]
}

func (w *world) all() []*process.Process {
	var out []*process.Process
	for _, s := range Stages {
		for _, l := range Lanes {
			out = append(out, w.process(s+"-"+l))
		}
	}
	return out
}

// specs returns the devices: more than enough for the load, so that a backlog drains
// quickly.
func specs() []fleet.Spec {
	var out []fleet.Spec
	for i, ms := range []int{10, 15, 20, 30, 40, 60} {
		s := fleet.Spec{ID: fmt.Sprintf("device-%d", i+1), Models: []string{model}, Slots: 4, ServiceTime: time.Duration(ms) * time.Millisecond,
			EmbedTime: 5 * time.Millisecond, BatchItemTime: time.Millisecond, Distribution: fleet.Exponential, Seed: uint64(i)} //nolint:gosec // small
		if i%2 == 0 {
			s.Tags = []string{"gpu"}
		}
		out = append(out, s)
	}
	return out
}

func deviceIDs() (ids []string) {
	for _, s := range specs() {
		ids = append(ids, s.ID)
	}
	return ids
}

// quiet is a logger that discards everything.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// build starts everything, in parallel where possible.
func build(ctx context.Context, t testing.TB, dir string, p *profile) (_ *world, err error) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // used by toxiproxy
	redis.SetLogger(quiet{})
	w := &world{dir: dir, profile: p, begin: time.Now(), processes: map[string]*process.Process{}, proxies: services.NewProxies(), ports: services.Ports{Next: 20000 + os.Getpid()%8000}}
	if w.log, err = os.Create(filepath.Join(dir, "run.log")); err != nil {
		return nil, fmt.Errorf("creating the log: %w", err)
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.prepare(); err != nil {
		return w, err
	}
	w.say("starting Kafka, Redis and Postgres")
	bin := make(chan string, 1)
	go func() {
		defer close(bin)
		bin <- harness.Binary(t) // builds while the services start
	}()
	err = w.startServices(ctx)
	var ok bool
	if w.bin, ok = <-bin; err != nil || !ok {
		return w, errors.Join(err, ctx.Err())
	}
	if err := w.connect(ctx); err != nil {
		return w, err
	}
	in := &harness.Installation{Settings: maps.Clone(p.settings)}
	if w.cluster != nil {
		in.Settings["kafka.replication"] = 3
	}
	for _, lane := range append([]string{"direct"}, Lanes...) {
		in.WriteConfig(t, filepath.Join(dir, lane+".yaml"), w.addresses(lane))
	}
	w.say("starting 12 processes and %d devices", len(specs()))
	if err := w.startFleet(ctx); err != nil {
		return w, err
	}
	return w, w.startProcesses(ctx)
}

// startServices starts the services, in parallel where possible.
func (w *world) startServices(ctx context.Context) (err error) {
	if w.cluster != nil {
		_, err = w.cluster.run(ctx, "up")
		return err
	}
	up := make(chan error, 3)
	start := func(s *services.Service) { up <- s.Start(ctx) }
	for _, s := range []*services.Service{w.kafka, w.redis, w.postgres} {
		if services.Installed() {
			go start(s)
		} else {
			start(s) // a package manager only runs once at a time
		}
	}
	for range 3 {
		err = errors.Join(err, <-up)
	}
	return err
}

// prepare chooses directories and ports.
func (w *world) prepare() error {
	data, err := os.MkdirTemp("", "batchyard-chaos-*")
	if err != nil {
		return fmt.Errorf("creating a directory for the services: %w", err)
	}
	if err := w.reap(data); err != nil {
		return err
	}
	// With permission, keep all data in memory: the test then doesn't depend on the
	// speed of the disk, and a killed process leaves the same data behind.
	if os.Getuid() == 0 && runtime.GOOS == "linux" {
		if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=4g,mode=755"); err != nil {
			w.say("keeping data on disk: mounting a tmpfs: %v", err)
		}
	}
	if err := os.Chmod(data, 0o755); err != nil { // Postgres runs as another user
		return fmt.Errorf("letting other users into the directory of the services: %w", err)
	}
	if *many {
		w.disk = &services.Disk{Why: "the services are clusters"}
		return w.prepareCluster(data)
	}
	if w.disk, err = services.NewDisk(filepath.Join(data, "disk")); err != nil {
		return err
	}
	p, err := w.ports.Take(11)
	if err != nil {
		return err
	}
	at := func(name string, port, a, b int) *services.Service {
		return &services.Service{Name: name, Dir: filepath.Join(data, name), Port: port, Lanes: map[string]int{"a": a, "b": b}}
	}
	// Kafka advertises its addresses to clients, so each of its lanes needs its own
	// listener. The port after its own is for the controller.
	kafka, err := w.ports.Take(4)
	if err != nil {
		return err
	}
	w.kafka, w.redis, w.postgres = at("kafka", kafka[0], p[0], p[1]), at("redis", p[2], p[3], p[4]), at("postgres", p[5], p[6], p[7])
	w.kafka.Env = []string{fmt.Sprintf("KAFKA_PORT=%d", w.kafka.Port), fmt.Sprintf("KAFKA_LANES=A:%d:%d B:%d:%d", kafka[2], p[0], kafka[3], p[1]),
		"KAFKA_SETTINGS=" + strings.Join(w.profile.broker, " ")}
	w.redis.Env = []string{fmt.Sprintf("REDIS_PORT=%d", w.redis.Port)}
	w.postgres.Env = []string{fmt.Sprintf("POSTGRES_PORT=%d", w.postgres.Port)}
	for i, lane := range Lanes {
		for _, s := range []*services.Service{w.kafka, w.redis, w.postgres} {
			upstream := s.Port
			if s == w.kafka {
				upstream = kafka[2+i]
			}
			how := services.CloseNormally
			if lane == "a" {
				how = services.CloseWithReset
			}
			if err := w.proxies.Add(s.Name+"/"+lane, services.Local(s.Lanes[lane]), services.Local(upstream), how); err != nil {
				return err
			}
		}
	}
	w.closes = append(w.closes, w.proxies.Close)
	return nil
}

// reap starts a shell that kills the services and removes their data when its input
// is closed, which the kernel does if we are killed.
func (w *world) reap(data string) error {
	_, file, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(file), "..", "..", "scripts", "services")
	cmd := exec.Command("bash", "-c", `read -r _
export BATCHYARD_SERVICES_MODE=native
BATCHYARD_SERVICES_DIR=$1/cluster "$2" cluster down
for s in kafka redis postgres; do
	BATCHYARD_SERVICES_DIR=$1/$s "$2" kill $s
	cp "$1/$s/$s/log" "$3/$s.log"
done >/dev/null 2>&1
umount -l "$1/disk" "$1" 2>/dev/null
rm -rf "$1"`, "reap", data, script, w.dir) //nolint:noctx // it outlives us
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("creating a pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a shell: %w", err)
	}
	w.closes = append(w.closes, func() {
		_ = in.Close()
		_ = cmd.Wait() // best effort
	})
	return nil
}

// addresses returns the settings with the addresses of the services in a lane.
func (w *world) addresses(lane string) map[string]any {
	if w.cluster != nil {
		return map[string]any{
			"kafka.brokers": w.cluster.brokers(), "redis.addr": strings.Join(w.cluster.nodes(), ","), "postgres.url": w.cluster.databaseURL(),
			"audit.checkpoint_dir": filepath.Join(w.dir, "audit-checkpoints"), "audit.checkpoint_interval": "10s",
		}
	}
	kafka, redis, postgres := w.kafka.Port, w.redis.Port, w.postgres.Port
	if lane != "direct" {
		kafka, redis, postgres = w.kafka.Lanes[lane], w.redis.Lanes[lane], w.postgres.Lanes[lane]
	}
	return map[string]any{
		"kafka.brokers": []string{services.Local(kafka)}, "redis.addr": services.Local(redis), "postgres.url": services.PostgresURL(postgres, "chaos"),
		// Per run: checkpoints of another run would not match this database.
		"audit.checkpoint_dir": filepath.Join(w.dir, "audit-checkpoints"), "audit.checkpoint_interval": "10s",
	}
}

// brokers returns the addresses of Kafka in a lane.
func (w *world) brokers(lane string) []string {
	switch {
	case w.cluster != nil:
		return w.cluster.brokers()
	case lane == "direct":
		return []string{services.Local(w.kafka.Port)}
	}
	return []string{services.Local(w.kafka.Lanes[lane])}
}

// createDatabase returns the URL of the database, which it creates.
func (w *world) createDatabase(ctx context.Context) (string, error) {
	if w.cluster != nil {
		return w.cluster.databaseURL(), nil // scripts/services created it
	}
	return services.PostgresURL(w.postgres.Port, "chaos"), services.MakeDatabase(ctx, w.postgres.Port, w.disk)
}

// connect creates topics and schema, and opens the test's own connections.
func (w *world) connect(ctx context.Context) error {
	url, err := w.createDatabase(ctx)
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, url); err != nil {
		return fmt.Errorf("creating the schema: %w", err)
	}
	if err := services.Admin(ctx, url, services.WatchSQL); err != nil {
		return err
	}
	replication := 1
	if w.cluster != nil {
		replication = 3
	}
	log, err := stream.Open(ctx, stream.Config{Brokers: w.brokers("direct"), TopicPrefix: topicBase, Partitions: partitions, Replication: replication}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return fmt.Errorf("connecting to Kafka: %w", err)
	}
	defer func() { _ = log.Close() }() // only needed to create the topics
	if _, err := log.CreateTopics(ctx); err != nil {
		return fmt.Errorf("creating the topics: %w", err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("reading the Postgres URL: %w", err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "chaos"
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = "0" // also while that of others is short
	if w.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	w.closes = append(w.closes, w.pool.Close)
	if err := w.connectRedis(ctx); err != nil {
		return err
	}
	if w.client, err = kgo.NewClient(kgo.SeedBrokers(w.brokers("direct")...), kgo.ClientID("chaos")); err != nil {
		return fmt.Errorf("connecting to Kafka: %w", err)
	}
	w.closes = append(w.closes, w.client.Close)
	if err := w.shorten(ctx); err != nil {
		return err
	}
	if w.tape, err = tape.Start(ctx, w.brokers("direct"), w.taped(), topicBase); err != nil {
		return err
	}
	w.closes = append(w.closes, w.tape.Close)
	return nil
}

// startFleet starts the devices, and sends heartbeats for those that are not silent.
func (w *world) startFleet(ctx context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.silent.Store(standingDevice, true)
	f, err := fleet.Start(ctx, append(specs(), lateDevice()))
	if err != nil {
		cancel()
		return err
	}
	w.fleet = f
	done := make(chan struct{})
	registry := store.NewRegistry(w.rdb, store.Config{}, "chaos:")
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, d := range f.Devices() {
				if _, silent := w.silent.Load(d.ID()); silent {
					continue
				}
				spec := d.Spec()
				one := device.Device{ID: d.ID(), URL: d.URL(), Models: spec.Models, Tags: spec.Tags, Slots: spec.Slots}
				one.Normalize()
				_, _ = registry.Beat(ctx, one) // if it fails, the next heartbeat follows soon
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	w.closes = append(w.closes, func() {
		cancel()
		<-done
		f.Close()
	})
	return nil
}

func (w *world) newProcess(name, stage, lane string) (*process.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	port, err := w.ports.Take(1)
	if err != nil {
		return nil, err
	}
	p := &process.Process{Seed: w.profile.seed, Name: name, Stage: stage, Lane: lane, Port: port[0], Bin: w.bin, Config: filepath.Join(w.dir, lane+".yaml"), Dir: w.dir, Log: w.say}
	w.processes[name] = p
	return p, nil
}

func (w *world) startProcesses(ctx context.Context) error {
	w.closes = append(w.closes, w.killAll)
	for _, s := range Stages {
		for _, l := range Lanes {
			p, err := w.newProcess(s+"-"+l, s, l)
			if err != nil {
				return err
			}
			if err := p.Start(); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, p := range w.all() {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) killAll() {
	w.mu.Lock()
	all := maps.Clone(w.processes)
	w.mu.Unlock()
	for _, p := range all {
		p.End(syscall.SIGKILL, 10*time.Second)
	}
}

// close stops everything, in the reverse order of the start.
func (w *world) close() {
	for i := len(w.closes) - 1; i >= 0; i-- {
		w.closes[i]()
	}
	w.closes = nil
	_ = w.log.Close() // no more writes
}
