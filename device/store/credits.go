package store

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device"
)

// Classes of pools: how work is sent to a device.
const ()

// maxCall is how many pools or leases one script call may name: Lua unpacks them onto its
// stack. Larger calls are split.
const maxCall = 1000

// Credits is the shared account of credits. A credit is the right to have one more task on
// a device. Each device has a pool of credits for each class, named deviceID + "/" +
// class. The credits for a whole round are taken in one atomic step, as leases: a lease
// covers the credits of one pool that one round took.
//
//	       Acquire                      Release of the last credit
//	(free) ───────▶ leased ──┬───────────────────────────────────────▶ (free)
//	                  ▲      │  not renewed for LeaseTTL                  ▲
//	                  │Renew │  (its holder died)                         │
//	                  └──────┴────────────────────────────────────────────┘
//
// Promise: the leased credits of a pool never exceed the limit that the taker named, no
// matter who acquires, dies, retries or releases twice.
type Credits struct {
	conn
	cfg     Config
	keys    []string // used, leases, expiry, and the three sets of seen releases
	asks    string   // hash pool → which router waits for it
	routers string   // sorted set of routers by when they were last seen
	channel string
}

// NewCredits returns the account whose keys start with the prefix.
func NewCredits(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Credits {
	k := prefix + "{credits}:"
	return &Credits{
		cfg: cfg.withDefaults(), channel: k + "freed",
		keys: []string{k + "used", k + "leases", k + "expiry", k + "seen:0", k + "seen:1", k + "seen:2"},
		asks: k + "asks", routers: k + "routers",
		conn: open(rdb, opts),
	}
}

// askTTL is how long an ask lasts unless it is renewed: the asker may have died.
const askTTL = time.Second

// All scripts start with this. used is pool → credits in use; leases is lease → "n:pool";
// expiry sorts the leases by when they expire. Each script first reclaims expired leases,
// a bounded number at a time, so that a dead holder's credits become free without any
// process watching it.
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

// acquireScript takes credits of many pools in one step and records asks.
//
//	KEYS[1]  hash pool → credits in use
//	KEYS[2]  hash lease → n:pool
//	KEYS[3]  sorted set of leases by expiry in ms
//	KEYS[4]  hash pool → expiry:priority:n:holder of an ask
//	ARGV[1]  time to live of a lease in ms
//	ARGV[2]  id of this call, which prefixes its leases
//	ARGV[3]  channel for freed pools
//	ARGV[4]  the taker
//	ARGV[5]  time to live of an ask in ms
//	ARGV[6]  number of asks
//	ARGV     then pool, priority, n for each ask
//	ARGV     then pool, wanted for priorities 0, 1 and 2, limit for each want; no pool twice
//	returns  for each want: granted, in use after it, 1 if some were kept for others
//
// If the answer was lost, the client's retry runs the script again with the same id. It
// finds the leases of the first run and returns those.
var acquireScript = redis.NewScript(luaReap + `
local freed = reap(200)
if #freed > 0 then redis.call('PUBLISH', ARGV[3], table.concat(freed, '\n')) end
local ttl, call, me, asks = tonumber(ARGV[1]), ARGV[2], ARGV[4], tonumber(ARGV[6])
local function parse(v)
  if not v then return nil end
  local till, priority, n, who = string.match(v, '^(%d+):(%d+):(%d+):(.*)$')
  if not till or tonumber(till) < now then return nil end
  return tonumber(priority), tonumber(n), who
end
if asks > 0 then
  local names, put, drop = {}, {}, {}
  for i = 1, asks do names[i] = ARGV[4 + 3 * i] end
  local old = redis.call('HMGET', KEYS[4], unpack(names))
  for i = 1, asks do
    local priority, n = tonumber(ARGV[5 + 3 * i]), tonumber(ARGV[6 + 3 * i])
    local was, _, who = parse(old[i])
    if n == 0 then
      if who == me then drop[#drop + 1] = names[i] end
    elseif not was or who == me or priority <= was then
      put[#put + 1] = names[i]
      put[#put + 1] = string.format('%.0f:%d:%d:%s', now + tonumber(ARGV[5]), priority, n, me)
    end
  end
  if #put > 0 then
    redis.call('HSET', KEYS[4], unpack(put))
    redis.call('PEXPIRE', KEYS[4], tonumber(ARGV[5]) * 2)
  end
  if #drop > 0 then redis.call('HDEL', KEYS[4], unpack(drop)) end
end
local first = 7 + 3 * asks
local pools, ids, n = {}, {}, 0
for i = first, #ARGV, 5 do
  n = n + 1
  pools[n] = ARGV[i]
  ids[n] = call .. n
end
if n == 0 then return {} end
local used = redis.call('HMGET', KEYS[1], unpack(pools))
local had = redis.call('HMGET', KEYS[2], unpack(ids))
local asked = redis.call('HMGET', KEYS[4], unpack(pools))
local out, use, hold, expire = {}, {}, {}, {}
for k = 1, n do
  local u = tonumber(used[k] or '0')
  local got, kept = 0, 0
  if had[k] then
    got = tonumber(string.match(had[k], '^(%d+):'))
  else
    local at = first + 5 * (k - 1)
    local room = math.max(0, tonumber(ARGV[at + 4]) - u)
    local priority, for_others, who = parse(asked[k])
    for p = 0, 2 do
      local want, may = tonumber(ARGV[at + 1 + p]), room - got
      if priority and who ~= me and p > priority then
        local less = math.max(0, may - for_others)
        if math.min(want, may) > less then kept = 1 end
        may = less
      end
      got = got + math.min(want, may)
    end
    if got > 0 then
      u = u + got
      use[#use + 1] = pools[k]; use[#use + 1] = u
      hold[#hold + 1] = ids[k]; hold[#hold + 1] = got .. ':' .. pools[k]
      expire[#expire + 1] = now + ttl; expire[#expire + 1] = ids[k]
    end
  end
  out[3 * k - 2], out[3 * k - 1], out[3 * k] = got, u, kept
end
if #use > 0 then
  redis.call('HSET', KEYS[1], unpack(use))
  redis.call('HSET', KEYS[2], unpack(hold))
  redis.call('ZADD', KEYS[3], unpack(expire))
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl * 20) end
end
return out
`)

// releaseScript releases credits.
//
//	KEYS[1…3] as above; KEYS[4…6] sets of the calls seen in the last seconds
//	ARGV[1]  id of this call: a repeated id is a retry and does nothing
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
//	returns  how many of them no longer exist
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

// Acquire takes credits for a whole round in one atomic step. The grants are in the order
// of the wants; each may be for fewer credits than wanted, or none. holder identifies the
// taker, for people who inspect Redis. A pool that is named twice gets its second grant in
// a second step.
func (c *Credits) Acquire(ctx context.Context, holder string, wants []device.Want) ([]device.Grant, error) {
	return c.AcquireFor(ctx, holder, wants, nil)
}

// AcquireFor is [Credits.Acquire] and in the same step records the holder's asks. There
// may be no wants.
func (c *Credits) AcquireFor(ctx context.Context, holder string, wants []device.Want, asks []device.Ask) ([]device.Grant, error) {
	grants := make([]device.Grant, len(wants))
	rest := make([]int, len(wants))
	for i := range wants {
		rest[i] = i
	}
	for len(rest) > 0 || len(asks) > 0 {
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
		part := asks[:min(len(asks), maxCall)]
		asks = asks[len(part):]
		if err := c.acquire(ctx, holder, wants, now, part, grants); err != nil {
			return nil, err
		}
		rest = later
	}
	return grants, nil
}

func (c *Credits) acquire(ctx context.Context, holder string, wants []device.Want, which []int, asks []device.Ask, grants []device.Grant) error {
	call := holder + "." + nonce() + "."
	args := make([]any, 0, 6+3*len(asks)+5*len(which))
	args = append(args, c.cfg.LeaseTTL.Milliseconds(), call, c.channel, holder, askTTL.Milliseconds(), len(asks))
	for _, a := range asks {
		args = append(args, a.Pool, a.Priority, max(0, a.N))
	}
	wanted := 0
	for _, i := range which {
		w := wants[i]
		of := w.ByPriority
		if of == [3]int{} {
			of[0] = w.N
		}
		args = append(args, w.Pool, max(0, of[0]), max(0, of[1]), max(0, of[2]), w.Limit)
		wanted += max(0, of[0]) + max(0, of[1]) + max(0, of[2])
	}
	keys := []string{c.keys[0], c.keys[1], c.keys[2], c.asks}
	v, err := c.run(ctx, "acquire", acquireScript, keys, args...)
	if err != nil {
		return fmt.Errorf("taking credits of %d pools in Redis: %w", len(which), err)
	}
	out, ok := v.([]any)
	if !ok || len(out) != 3*len(which) {
		return fmt.Errorf("taking credits of %d pools in Redis: unexpected reply with %d parts", len(which), len(out))
	}
	taken := 0
	for k, i := range which {
		n, _ := out[3*k].(int64)
		used, _ := out[3*k+1].(int64)
		held, _ := out[3*k+2].(int64)
		grants[i] = device.Grant{Pool: wants[i].Pool, N: int(n), Used: int(used), Outranked: held > 0}
		if n > 0 {
			grants[i].Lease = call + strconv.Itoa(k+1)
			taken += int(n)
		}
	}
	c.metrics.Device.CreditsTaken.Add(float64(taken))
	c.metrics.Device.CreditsDenied.Add(float64(max(0, wanted-taken)))
	return nil
}

// Release returns credits and tells watchers which pools have room. A lease that no longer
// exists, because it expired, was released before or was lost with Redis, is not an error.
// After an error the credits may or may not be free; if not, they become free when the
// lease expires.
func (c *Credits) Release(ctx context.Context, rel []device.Release) error {
	for _, call := range releaseCalls(rel) {
		if err := c.release(ctx, call); err != nil {
			return err
		}
	}
	return nil
}

// releaseCall is one call of the script. Repeating it with the same id does nothing for as long as
// Redis remembers the id, which is at least [releaseMemory].
type releaseCall struct {
	id     string
	leases []any // lease, n, lease, n, …
	first  time.Time
}

// releaseMemory is the time for which Redis remembers the id of a call: an epoch of releaseScript.
const releaseMemory = 10 * time.Second

// releaseCalls splits releases into calls.
func releaseCalls(rel []device.Release) (calls []*releaseCall) {
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
	for part := range slices.Chunk(order, maxCall) {
		call := &releaseCall{id: nonce(), leases: make([]any, 0, 2*len(part))}
		for _, lease := range part {
			call.leases = append(call.leases, lease, sum[lease])
		}
		calls = append(calls, call)
	}
	return calls
}

func (c *Credits) release(ctx context.Context, call *releaseCall) error {
	if call.first.IsZero() {
		call.first = time.Now()
	}
	v, err := c.run(ctx, "release", releaseScript, c.keys, append([]any{call.id, c.channel}, call.leases...)...)
	if err != nil {
		return fmt.Errorf("releasing credits of %d leases in Redis: %w", len(call.leases)/2, err)
	}
	n, _ := v.(int64)
	c.metrics.Device.CreditsFreed.Add(float64(n))
	return nil
}

// Renew extends leases by another LeaseTTL. lost is how many no longer exist: other
// routers may hold their credits by now.
func (c *Credits) Renew(ctx context.Context, leases []device.LeaseRef) (lost int, err error) {
	for len(leases) > 0 {
		part := leases[:min(len(leases), maxCall)]
		leases = leases[len(part):]
		args := make([]any, 0, 2+len(part))
		args = append(args, c.cfg.LeaseTTL.Milliseconds(), c.channel)
		for _, l := range part {
			args = append(args, l.Lease)
		}
		v, err := c.run(ctx, "renew", renewScript, c.keys[:3], args...)
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
	if _, err := c.run(ctx, "reap", renewScript, c.keys[:3], c.cfg.LeaseTTL.Milliseconds(), c.channel); err != nil {
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

// Watch calls onFree with pools that have room again, and with nil after every reconnect,
// because messages may have been missed. It returns when ctx ends. While it runs it also
// reclaims expired leases, so that takers who wait for room learn of those, too.
func (c *Credits) Watch(ctx context.Context, onFree func(pools []string)) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.reapEvery(ctx, c.cfg.LeaseTTL/3)
	}()
	defer func() { cancel(); <-done }()
	return c.watch(ctx, c.channel, func(p string) { onFree(parsePools(p)) }, func() { onFree(nil) })
}

// parsePools parses which pools have room; nil means any.
func parsePools(payload string) []string {
	if strings.Count(payload, "\n") > maxPools {
		return nil
	}
	return strings.Split(payload, "\n")
}

// maxPools is more than one message lists.
const maxPools = 4 * maxCall

// reapEvery reclaims expired leases: Redis sends no message when one expires.
func (c *Credits) reapEvery(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, _ = c.run(ctx, "reap", renewScript, c.keys[:3], c.cfg.LeaseTTL.Milliseconds(), c.channel) // counted in metrics; the next tick retries
	}
}

// nonce returns an id for a call, by which its retry is recognised.
func nonce() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b[:])
}
