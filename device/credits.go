package device

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
)

// Classes of pools: how work goes to a device.
const (
	ClassEach   = "each"   // one request a task: chat, responses
	ClassMerged = "merged" // many tasks in one request: embeddings, completions
)

// Pool names a device's pool of credits.
func Pool(deviceID, class string) string { return deviceID + "/" + class }

// maxCall bounds the pools or leases of one call of a script: Lua unpacks them
// onto its stack. More are sent in further calls.
const maxCall = 1000

// Credits is the shared account of credits.
type Credits struct {
	rdb     redis.UniversalClient
	cfg     Config
	keys    []string // used, leases, expiry, and the three sets of seen releases
	channel string
	metrics *metrics.Metrics
}

// NewCredits returns the account under the prefix.
func NewCredits(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Credits {
	k := prefix + "{credits}:"
	return &Credits{
		rdb: rdb, cfg: cfg.withDefaults(), channel: k + "freed",
		keys:    []string{k + "used", k + "leases", k + "expiry", k + "seen:0", k + "seen:1", k + "seen:2"},
		metrics: apply(opts).metrics,
	}
}

// Want is a wish for credits of one pool.
type Want struct {
	Pool  string
	N     int
	Limit int // what the taker thinks the pool may hold in total
}

// Grant answers a Want.
type Grant struct {
	Pool  string
	Lease string // empty when N is 0
	N     int    // may be less than wanted
	Used  int    // in the pool after the grant
}

// LeaseRef names a lease.
type LeaseRef struct{ Pool, Lease string }

// Release gives back N credits of a lease.
type Release struct {
	Pool, Lease string
	N           int
}

// The scripts share this beginning. used is pool → credits in use; leases is
// lease → "n:pool"; expiry orders the leases by when they run out. Each script
// first takes back what has run out, a bounded number at a time, so that the
// credits of a dead holder come free without anybody watching it.
const luaReap = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function reap(most)
  local gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, most)
  if #gone == 0 then return {} end
  local held = redis.call('HMGET', KEYS[2], unpack(gone))
  local back, pools = {}, {}
  for i = 1, #gone do
    if held[i] then
      local n, pool = string.match(held[i], '^(%d+):(.*)$')
      if not back[pool] then back[pool] = 0; pools[#pools + 1] = pool end
      back[pool] = back[pool] + tonumber(n)
    end
  end
  redis.call('HDEL', KEYS[2], unpack(gone))
  redis.call('ZREM', KEYS[3], unpack(gone))
  for i = 1, #pools do
    if redis.call('HINCRBY', KEYS[1], pools[i], -back[pools[i]]) <= 0 then redis.call('HDEL', KEYS[1], pools[i]) end
  end
  return pools
end
`

// acquireScript takes credits of many pools in one step.
//
//	KEYS[1]  hash pool → credits in use
//	KEYS[2]  hash lease → n:pool
//	KEYS[3]  sorted set of leases by expiry in ms
//	ARGV[1]  time to live of a lease in ms
//	ARGV[2]  name of this call, which its leases begin with
//	ARGV[3]  channel for freed pools
//	ARGV     then pool, wanted, limit for each want; no pool twice
//	returns  for each want: granted, used after it
//
// Taken twice because an answer was lost: the client's retry is a new call to
// us, under the same name. It finds the leases of the first and answers with
// those.
var acquireScript = redis.NewScript(luaReap + `
local freed = reap(200)
if #freed > 0 then redis.call('PUBLISH', ARGV[3], table.concat(freed, '\n')) end
local ttl, call = tonumber(ARGV[1]), ARGV[2]
local pools, ids, n = {}, {}, 0
for i = 4, #ARGV, 3 do
  n = n + 1
  pools[n] = ARGV[i]
  ids[n] = call .. n
end
local used = redis.call('HMGET', KEYS[1], unpack(pools))
local had = redis.call('HMGET', KEYS[2], unpack(ids))
local out, use, hold, expire = {}, {}, {}, {}
for k = 1, n do
  local u = tonumber(used[k] or '0')
  local got = 0
  if had[k] then
    got = tonumber(string.match(had[k], '^(%d+):'))
  else
    got = math.max(0, math.min(tonumber(ARGV[2 + 3 * k]), tonumber(ARGV[3 + 3 * k]) - u))
    if got > 0 then
      u = u + got
      use[#use + 1] = pools[k]; use[#use + 1] = u
      hold[#hold + 1] = ids[k]; hold[#hold + 1] = got .. ':' .. pools[k]
      expire[#expire + 1] = now + ttl; expire[#expire + 1] = ids[k]
    end
  end
  out[2 * k - 1] = got
  out[2 * k] = u
end
if #use > 0 then
  redis.call('HSET', KEYS[1], unpack(use))
  redis.call('HSET', KEYS[2], unpack(hold))
  redis.call('ZADD', KEYS[3], unpack(expire))
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl * 20) end
end
return out
`)

// releaseScript gives credits back.
//
//	KEYS[1…3] as above; KEYS[4…6] sets of the calls seen in the last seconds
//	ARGV[1]  name of this call: the same name again is a retry and does nothing
//	ARGV[2]  channel for freed pools
//	ARGV     then lease, n for each release; no lease twice
//	returns  credits freed
var releaseScript = redis.NewScript(luaReap + `
local epoch = math.floor(now / 10000)
local seen, before = KEYS[4 + epoch % 3], KEYS[4 + (epoch + 2) % 3]
if redis.call('SISMEMBER', before, ARGV[1]) == 1 or redis.call('SADD', seen, ARGV[1]) == 0 then return 0 end
redis.call('PEXPIREAT', seen, (epoch + 2) * 10000)
local freed = reap(200)
local ids = {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local held = redis.call('HMGET', KEYS[2], unpack(ids))
local back, pools, hold, gone, total = {}, {}, {}, {}, 0
for k = 1, #ids do
  if held[k] then
    local n, pool = string.match(held[k], '^(%d+):(.*)$')
    n = tonumber(n)
    local give = math.min(n, tonumber(ARGV[2 + 2 * k]))
    if give >= n then
      gone[#gone + 1] = ids[k]
    else
      hold[#hold + 1] = ids[k]; hold[#hold + 1] = (n - give) .. ':' .. pool
    end
    if not back[pool] then back[pool] = 0; pools[#pools + 1] = pool end
    back[pool] = back[pool] + give
    total = total + give
  end
end
if #hold > 0 then redis.call('HSET', KEYS[2], unpack(hold)) end
if #gone > 0 then
  redis.call('HDEL', KEYS[2], unpack(gone))
  redis.call('ZREM', KEYS[3], unpack(gone))
end
if #pools > 0 then
  local used = redis.call('HMGET', KEYS[1], unpack(pools))
  local use, none = {}, {}
  for i = 1, #pools do
    local u = tonumber(used[i] or '0') - back[pools[i]]
    if u > 0 then use[#use + 1] = pools[i]; use[#use + 1] = u else none[#none + 1] = pools[i] end
    freed[#freed + 1] = pools[i]
  end
  if #use > 0 then redis.call('HSET', KEYS[1], unpack(use)) end
  if #none > 0 then redis.call('HDEL', KEYS[1], unpack(none)) end
end
if #freed > 0 then redis.call('PUBLISH', ARGV[2], table.concat(freed, '\n')) end
return total
`)

// renewScript extends leases.
//
//	KEYS[1…3] as above
//	ARGV[1]  time to live in ms
//	ARGV[2]  channel for freed pools
//	ARGV     then the leases
//	returns  how many of them are not there any more
var renewScript = redis.NewScript(luaReap + `
local freed = reap(200)
if #freed > 0 then redis.call('PUBLISH', ARGV[2], table.concat(freed, '\n')) end
local ttl, ids = tonumber(ARGV[1]), {}
for i = 3, #ARGV do ids[#ids + 1] = ARGV[i] end
if #ids == 0 then return 0 end
local held = redis.call('HMGET', KEYS[2], unpack(ids))
local expire, lost = {}, 0
for k = 1, #ids do
  if held[k] then
    expire[#expire + 1] = now + ttl; expire[#expire + 1] = ids[k]
  else
    lost = lost + 1
  end
end
if #expire > 0 then
  redis.call('ZADD', KEYS[3], unpack(expire))
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl * 20) end
end
return lost
`)

// Acquire takes credits for a whole round of picks in one atomic step. The
// grants are in the order of the wants; one may hold less than was wanted, or
// nothing. holder names the taker, for people who look into Redis. A pool that
// is named twice gets its second grant in a second step.
func (c *Credits) Acquire(ctx context.Context, holder string, wants []Want) ([]Grant, error) {
	grants := make([]Grant, len(wants))
	rest := make([]int, len(wants))
	for i := range wants {
		rest[i] = i
	}
	for len(rest) > 0 {
		var now, later []int
		named := make(map[string]bool, len(rest))
		for _, i := range rest {
			if named[wants[i].Pool] || len(now) == maxCall {
				later = append(later, i)
				continue
			}
			named[wants[i].Pool] = true
			now = append(now, i)
		}
		if err := c.acquire(ctx, holder, wants, now, grants); err != nil {
			return nil, err
		}
		rest = later
	}
	return grants, nil
}

func (c *Credits) acquire(ctx context.Context, holder string, wants []Want, which []int, grants []Grant) error {
	call := holder + "." + nonce() + "."
	args := make([]any, 0, 3+3*len(which))
	args = append(args, c.cfg.LeaseTTL.Milliseconds(), call, c.channel)
	wanted := 0
	for _, i := range which {
		w := wants[i]
		args = append(args, w.Pool, max(0, w.N), w.Limit)
		wanted += max(0, w.N)
	}
	v, err := run(ctx, c.rdb, c.metrics, "acquire", acquireScript, c.keys, args...)
	if err != nil {
		return fmt.Errorf("taking credits of %d pools in Redis: %w", len(which), err)
	}
	out, ok := v.([]any)
	if !ok || len(out) != 2*len(which) {
		return fmt.Errorf("taking credits of %d pools in Redis: the answer has %d parts", len(which), len(out))
	}
	taken := 0
	for k, i := range which {
		n, _ := out[2*k].(int64)
		used, _ := out[2*k+1].(int64)
		grants[i] = Grant{Pool: wants[i].Pool, N: int(n), Used: int(used)}
		if n > 0 {
			grants[i].Lease = call + strconv.Itoa(k+1)
			taken += int(n)
		}
	}
	c.metrics.Device.CreditsTaken.Add(float64(taken))
	c.metrics.Device.CreditsDenied.Add(float64(max(0, wanted-taken)))
	return nil
}

// Release gives credits back and tells who watches which pools have room. A
// lease that is not there, because it ran out, was given back before or Redis
// forgot it, is no error. After an error the credits may or may not be free;
// what is not comes free when the lease runs out.
func (c *Credits) Release(ctx context.Context, rel []Release) error {
	sum := make(map[string]int, len(rel)) // a lease may be named more than once
	order := make([]string, 0, len(rel))
	for _, r := range rel {
		if r.N <= 0 || r.Lease == "" {
			continue
		}
		if _, ok := sum[r.Lease]; !ok {
			order = append(order, r.Lease)
		}
		sum[r.Lease] += r.N
	}
	for len(order) > 0 {
		part := order[:min(len(order), maxCall)]
		order = order[len(part):]
		args := make([]any, 0, 2+2*len(part))
		args = append(args, nonce(), c.channel)
		for _, id := range part {
			args = append(args, id, sum[id])
		}
		v, err := run(ctx, c.rdb, c.metrics, "release", releaseScript, c.keys, args...)
		if err != nil {
			return fmt.Errorf("giving back credits of %d leases in Redis: %w", len(part), err)
		}
		n, _ := v.(int64)
		c.metrics.Device.CreditsFreed.Add(float64(n))
	}
	return nil
}

// Renew keeps leases for another LeaseTTL. lost counts those that are not there
// any more: their credits may be somebody else's by now.
func (c *Credits) Renew(ctx context.Context, leases []LeaseRef) (lost int, err error) {
	for len(leases) > 0 {
		part := leases[:min(len(leases), maxCall)]
		leases = leases[len(part):]
		args := make([]any, 0, 2+len(part))
		args = append(args, c.cfg.LeaseTTL.Milliseconds(), c.channel)
		for _, l := range part {
			args = append(args, l.Lease)
		}
		v, err := run(ctx, c.rdb, c.metrics, "renew", renewScript, c.keys[:3], args...)
		if err != nil {
			return lost, fmt.Errorf("renewing %d leases in Redis: %w", len(part), err)
		}
		n, _ := v.(int64)
		lost += int(n)
	}
	c.metrics.Device.LeasesLost.Add(float64(lost))
	return lost, nil
}

// Used returns the credits in use of each pool.
func (c *Credits) Used(ctx context.Context, pools []string) ([]int, error) {
	out := make([]int, len(pools))
	if len(pools) == 0 {
		return out, nil
	}
	if _, err := run(ctx, c.rdb, c.metrics, "reap", renewScript, c.keys[:3], c.cfg.LeaseTTL.Milliseconds(), c.channel); err != nil {
		return nil, err
	}
	vs, err := c.rdb.HMGet(ctx, c.keys[0], pools...).Result()
	if err != nil {
		return nil, fmt.Errorf("reading credits of %d pools in Redis: %w", len(pools), err)
	}
	for i, v := range vs {
		if s, ok := v.(string); ok {
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, fmt.Errorf("reading credits of pool %s in Redis: %w", pools[i], err) //nolint:gosec // HMGET answers once a field
			}
			out[i] = n
		}
	}
	return out, nil
}

// Watch calls onFree with the pools that got room, and with none after every
// reconnect, since messages may have been missed. It returns when ctx ends.
// While it runs it also frees what dead holders left, so that a taker who waits
// for room hears of that too.
func (c *Credits) Watch(ctx context.Context, onFree func(pools []string)) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.reapEvery(ctx, c.cfg.LeaseTTL/3)
	}()
	defer func() { cancel(); <-done }()
	return watch(ctx, c.rdb, c.channel, func(p string) { onFree(strings.Split(p, "\n")) }, func() { onFree(nil) })
}

// reapEvery frees run-out leases: a lease running out is no message in Redis.
func (c *Credits) reapEvery(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, _ = run(ctx, c.rdb, c.metrics, "reap", renewScript, c.keys[:3], c.cfg.LeaseTTL.Milliseconds(), c.channel) // counted; the next tick tries again
	}
}

// nonce names a call, so that its retry is known.
func nonce() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b[:])
}
