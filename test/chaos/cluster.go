package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/test/chaos/services"
)

// Faults of services that are clusters.
const (
	BrokerKill   Kind = "broker-kill"   // one of three brokers is killed, and comes back
	MasterKill   Kind = "master-kill"   // the Redis node that holds the credits is killed, and comes back as a replica
	PrimaryKill  Kind = "primary-kill"  // the primary of Postgres is killed, and its replica promoted
	PrimaryLoses Kind = "primary-loses" // the same, after the replica has lagged for a while
)

// clustered are the kinds of faults while the services are clusters. There are no proxies in front of
// them, because each member tells clients the addresses of the others.
var clustered = deck{
	kinds: []Kind{Kill, Pause, Term, Third, BrokerKill, MasterKill, PrimaryKill, PrimaryLoses, DeviceHang, DeviceRefuse, DeviceFail, DeviceSlow, DeviceGarbles, TopicRecreated, TopicGrown, RecordsDeleted, Absent, Crowd},
	often: []Kind{Kill, Kill, Pause, Term, BrokerKill, BrokerKill, MasterKill, MasterKill, PrimaryLoses},
}

// cluster is three brokers, six nodes of Redis and two of Postgres, run by scripts/services cluster.
type cluster struct {
	dir                    string
	kafka, redis, postgres int // ports of the first members
}

func (c *cluster) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute) // three brokers start slowly on a busy machine
	defer cancel()
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(file), "..", "..", "scripts", "services"), append([]string{"cluster"}, args...)...)
	cmd.Env = append(os.Environ(), "BATCHYARD_SERVICES_DIR="+c.dir, fmt.Sprint("KAFKA_PORT=", c.kafka), fmt.Sprint("REDIS_PORT=", c.redis), fmt.Sprint("POSTGRES_PORT=", c.postgres))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("scripts/services cluster %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// addresses returns the addresses of n members whose ports are so far apart.
func addresses(first, n, apart int) (all []string) {
	for i := range n {
		all = append(all, services.Local(first+i*apart))
	}
	return all
}

func (c *cluster) brokers() []string { return addresses(c.kafka, 3, 10) }
func (c *cluster) nodes() []string   { return addresses(c.redis, 6, 1) }

func (c *cluster) databaseURL() string {
	return fmt.Sprintf("postgres://batchyard:%s@%s/batchyard?sslmode=disable&target_session_attrs=read-write", services.Password, strings.Join(addresses(c.postgres, 2, 1), ","))
}

// prepareCluster chooses directories and ports.
func (w *world) prepareCluster(data string) error {
	c := &cluster{dir: filepath.Join(data, "cluster")}
	for _, first := range []*int{&c.kafka, &c.redis, &c.postgres} {
		p, err := w.ports.Take(1)
		if err != nil {
			return err
		}
		*first = p[0]
		w.ports.Next += 120 // the members, controllers and the bus of Redis
	}
	w.cluster = c
	w.closes = append(w.closes, func() {
		if _, err := c.run(context.Background(), "down"); err != nil {
			w.say("stopping the clusters: %v", err)
		}
	})
	return nil
}

// connectRedis opens the test's own connection, which follows failovers as that of a process does.
func (w *world) connectRedis(ctx context.Context) error {
	if w.cluster == nil {
		w.rdb = redis.NewClient(&redis.Options{Addr: services.Local(w.redis.Port), ClientName: "chaos"})
	} else {
		rdb, err := store.OpenRedis(ctx, store.RedisConfig{Addr: strings.Join(w.cluster.nodes(), ",")}, nil, nil)
		if err != nil {
			return err
		}
		w.rdb = rdb
	}
	w.closes = append(w.closes, func() { _ = w.rdb.Close() })
	return nil
}

// applyToCluster breaks a part of a cluster and heals it.
func (w *world) applyToCluster(ctx, over context.Context, f Fault) error {
	c := w.cluster
	switch f.Kind {
	case BrokerKill:
		return w.loseMember(ctx, over, f, f.With["member"])
	case MasterKill:
		member, err := w.creditsMaster(ctx)
		if err != nil {
			return err
		}
		return w.loseMember(ctx, over, f, member)
	case PrimaryLoses:
		if _, err := c.run(ctx, "cut"); err != nil {
			return err
		}
		f.wait(over)
	}
	old, err := c.run(ctx, "primary")
	if err != nil {
		return err
	}
	_, err = c.run(ctx, "kill", old)
	if err != nil {
		return err
	}
	if f.Kind == PrimaryKill {
		f.wait(over)
	}
	for _, step := range []string{"promote", "rejoin"} {
		if _, err := c.run(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// loseMember kills a member and starts it again.
func (w *world) loseMember(ctx, over context.Context, f Fault, member string) error {
	w.say("killing %s", member)
	_, err := w.cluster.run(ctx, "kill", member)
	f.wait(over)
	_, started := w.cluster.run(ctx, "start", member)
	return errors.Join(err, started)
}

// creditsMaster returns the node that holds the credits.
func (w *world) creditsMaster(ctx context.Context) (string, error) {
	slot, err := w.rdb.ClusterKeySlot(ctx, "chaos:{credits}:used").Result()
	if err != nil {
		return "", fmt.Errorf("looking for the node that holds the credits: %w", err)
	}
	ranges, err := w.rdb.ClusterSlots(ctx).Result()
	if err != nil {
		return "", fmt.Errorf("looking for the node that holds the credits: %w", err)
	}
	for _, r := range ranges {
		if int64(r.Start) > slot || slot > int64(r.End) || len(r.Nodes) == 0 {
			continue
		}
		for i, at := range w.cluster.nodes() {
			if at == r.Nodes[0].Addr {
				return fmt.Sprint("redis-", i+1), nil
			}
		}
	}
	return "", errors.New("looking for the node that holds the credits: no node has their slot")
}
