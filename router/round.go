package router

import (
	"cmp"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
)

// pick is a task with the device that the policy chose for it.
type pick struct {
	item   *item
	state  *state
	queue  *queue
	charge charge // what it was counted as
	band   int    // whose credits it takes: its own, or the first when it is its band's turn
	detail []byte // why, for the audit log
	lease  string
	idle   int // slots of the device without work when it was picked
}

func (p *pick) pool() *pool { return p.state.pool(p.item.class.merged) }

// maxHeldRounds bounds the tasks that may decide to wait for a better device, in
// one round, as a multiple of its picks.
const maxHeldRounds = 4

// plan chooses devices for up to RoundPicks tasks, in the order of window. It
// takes the credits in its own books only; a class whose devices are all full is
// passed over without looking at its tasks one by one. more tells that it
// stopped at the bound and not for want of tasks or credits.
func (d *decider) plan(now time.Time) (picks []pick, more bool) {
	d.round++
	w := d.window
	d.held, d.aside = d.held[:0], d.aside[:0]
	// Tasks of one class that may wait for a better device before the class is
	// passed over: the others are not to wait behind them.
	patience := max(32, maxHeldRounds*d.cfg.RoundPicks/max(1, len(w.classes)))
	for len(picks) < d.cfg.RoundPicks {
		q, turn := w.nextQueue()
		if q == nil {
			break
		}
		c := q.class
		if c.round != d.round {
			c.round, c.waits, c.until, c.full = d.round, 0, 0, false
		}
		f := d.view.look(c, now, d.rng)
		paused := !turn && len(f.states) > 0 && d.pauses(c, q.flow.key.band, now)
		if paused && w.owed(q.flow.key.band, c) {
			turn, paused = true, false
		}
		switch {
		case len(f.states) == 0:
			c.unable = true
			w.putOut(q)
			continue
		case c.full, paused:
			w.putAside(q)
			d.aside = append(d.aside, q)
			continue
		}
		it := q.ready.first()
		if it.lost() {
			d.forget(it, now)
			continue
		}
		if c.waits < c.until { // it would choose to wait, as the one before
			d.hold(it, patience)
			continue
		}
		choice := d.policy.Pick(&Request{
			ID: it.task.ID, Tenant: it.task.Tenant, Session: it.task.Session, Client: it.client,
			Band: q.flow.key.band, Level: it.task.Level, Ahead: c.waits,
		}, &f.Field)
		switch {
		case choice.Index != Wait:
			p := pick{item: it, state: f.states[choice.Index], queue: q, band: q.flow.key.band}
			if turn {
				p.band = 0
			}
			d.book(&p, f, &choice, now)
			p.charge = w.served(q, f.cost, turn)
			w.unready(it)
			picks = append(picks, p)
			c.until = 0
		case choice.Held && choice.Until > c.ready+c.waits:
			c.full = true // so would all the others
		case choice.Held:
			c.until = choice.Until
			d.hold(it, patience)
		default:
			c.full = true
		}
	}
	for _, q := range d.aside {
		if q.aside && q.ready.len() > 0 {
			w.bring(q)
		}
	}
	for _, it := range d.held {
		w.back(it)
	}
	return picks, len(picks) == d.cfg.RoundPicks
}

// hold keeps a task back for a better device, for the rest of the round.
func (d *decider) hold(it *item, patience int) {
	c := it.class
	d.window.unready(it)
	d.held = append(d.held, it)
	c.waits++
	c.full = c.waits >= patience
}

// book takes a credit in our own books.
func (d *decider) book(p *pick, f *field, choice *Choice, now time.Time) {
	pl := p.pool()
	p.detail = f.detail(d.policy, choice, make([]byte, 0, 512))
	p.idle = max(0, pl.Slots-pl.Used)
	pl.Used++
	d.view.picks++
	pl.Last = d.view.picks
	f.Picks = d.view.picks
	f.Cands[choice.Index].Explore = false
	p.state.tried = now
}

// pauses says that the class takes nothing for the band now: a higher band waits
// for its devices at another router.
func (d *decider) pauses(c *class, band int, now time.Time) bool {
	if !c.pause.After(now) || band < c.pauses {
		return false
	}
	d.resumeAt(c.pause)
	return true
}

func (d *decider) resumeAt(at time.Time) {
	if d.resume.IsZero() || at.Before(d.resume) {
		d.resume = at
	}
}

// pauseFor is how long a lower band leaves alone what a higher one waits for.
const pauseFor = 25 * time.Millisecond

// take gets the credits for the picks, in one round trip, and returns the picks
// that got one; the others go back to the window, best rank kept.
func (d *decider) take(picks []pick, asks []device.Ask, now time.Time) ([]pick, error) {
	d.wants, d.kept = d.wants[:0], 0
	clear(d.wantAt)
	for i := range picks {
		pl := picks[i].pool()
		k, ok := d.wantAt[pl]
		if !ok {
			k = len(d.wants)
			d.wantAt[pl] = k
			d.wants = append(d.wants, device.Want{Pool: pl.name, Limit: pl.Limit})
		}
		d.wants[k].N++
		d.wants[k].Of[picks[i].band]++
	}
	grants, err := d.fx.acquire(d.wants, asks)
	if err != nil {
		for i := range picks {
			picks[i].pool().Used--
			d.giveUp(&picks[i])
		}
		clear(d.asked) // nobody may know of them
		return nil, err
	}
	for i := range grants {
		if pl := d.view.pools[grants[i].Pool]; pl != nil {
			pl.Used = grants[i].Used
		}
	}
	// Credits are granted to the highest bands first.
	slices.SortStableFunc(picks, func(a, b pick) int { return cmp.Compare(a.band, b.band) })
	got := picks[:0]
	for _, p := range picks {
		g := &grants[d.wantAt[p.pool()]]
		if g.N == 0 {
			if g.Held && p.band > 0 {
				d.pauseClass(p.item.class, p.band, now)
				if !d.window.owed(p.band, p.item.class) { // else the next round serves it
					d.kept++
				}
			}
			d.giveUp(&p)
			continue
		}
		g.N--
		p.lease = g.Lease
		d.window.remove(p.item)
		if p.state.probe { // the next one after the next refresh: it fails, as far as anybody knows
			p.pool().Limit = 0
		}
		got = append(got, p)
	}
	slices.SortStableFunc(got, func(a, b pick) int { return cmp.Compare(a.state.ID, b.state.ID) })
	return got, nil
}

// pauseClass leaves to a higher band elsewhere what the class waits for. Should the
// asks there never end, the share of this band is served all the same: it is owed
// what the devices do meanwhile, which all routers share.
func (d *decider) pauseClass(c *class, band int, now time.Time) {
	if c.pause.Before(now) || band < c.pauses {
		c.pauses = band
	}
	c.pause = now.Add(pauseFor)
	d.resumeAt(c.pause)
	if now.Before(d.owedAt[band]) { // counted with another class
		return
	}
	d.owedAt[band] = c.pause
	slots := 0
	for _, s := range c.field.states {
		slots += max(1, s.Slots)
	}
	d.window.owe(band, float64(slots)*pauseFor.Seconds()/float64(d.view.routers))
}

// giveUp returns a task that got no credit to the window.
func (d *decider) giveUp(p *pick) {
	d.window.unserved(p.queue, p.charge)
	d.window.back(p.item)
}

// Asks are how routers keep credits for each other: while tasks of a band wait
// here for devices that are full, the other routers take no credit of these
// devices for a lower band.
const (
	askEvery = 300 * time.Millisecond
	maxAsks  = 512 // pools; a class that more devices serve is soon served by others
)

// asks says which pools' credits are to be kept, when that is another than what
// the other routers know, or they will soon forget it.
func (d *decider) asks(now time.Time) []device.Ask {
	if d.view.routers < 2 || now.Before(d.retryAt) {
		clear(d.asked)
		return nil
	}
	wish := map[string]askedFor{}
	for _, c := range d.window.classes {
		if !c.full || c.round != d.round || c.unable || c.field == nil || len(wish) >= maxAsks {
			continue
		}
		band, n := bands, 0
		for f, q := range c.queues {
			switch {
			case q.ready.len() == 0 || f.key.band > band:
			case f.key.band < band:
				band, n = f.key.band, q.ready.len()
			default:
				n += q.ready.len()
			}
		}
		if band >= bands-1 { // nobody is below
			continue
		}
		for _, s := range c.field.states {
			pl := s.pool(c.merged)
			if pl.Free() > 0 { // they could have it, and wait for a better one
				continue
			}
			switch old, ok := wish[pl.name]; {
			case !ok && len(wish) < maxAsks, ok && band < old.band:
				wish[pl.name] = askedFor{band, n}
			case ok && band == old.band:
				wish[pl.name] = askedFor{band, old.n + n}
			}
		}
	}
	same := len(wish) == len(d.asked)
	var out []device.Ask
	for name, a := range wish {
		old, ok := d.asked[name]
		same = same && ok && old.band == a.band
		out = append(out, device.Ask{Pool: name, Band: a.band, N: a.n})
	}
	if same && (len(wish) == 0 || now.Before(d.askAt)) {
		return nil
	}
	for name, a := range d.asked {
		if _, ok := wish[name]; !ok {
			out = append(out, device.Ask{Pool: name, Band: a.band})
		}
	}
	slices.SortFunc(out, func(a, b device.Ask) int { return cmp.Compare(a.Pool, b.Pool) })
	d.asked, d.askAt = wish, now.Add(askEvery)
	return out
}
