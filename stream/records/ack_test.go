package records

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// counted is a record that counts how often it was finished.
type counted struct {
	done int
	lost bool
}

func (c *counted) Done()       { c.done++ }
func (c *counted) Lost() bool  { return c.lost }
func (c *counted) Again(error) { c.lost = true }

func TestAckFinishesWithTheLastRelease(t *testing.T) {
	t.Parallel()
	rec := &counted{}
	a := NewAck(rec, 2)
	a.Hold()
	a.Release()
	a.Release()
	require.Zero(t, rec.done)
	a.Release()
	require.Equal(t, 1, rec.done)
}

func TestACarriedRecordIsDoneWithItsCarrier(t *testing.T) {
	t.Parallel()
	first, second := &counted{}, &counted{lost: true}
	a, b := NewAck(first, 1), NewAck(second, 2)
	a.Carry(b)
	b.Release() // the events of its arrival
	require.Zero(t, second.done)
	a.Release()
	require.Equal(t, 1, first.done)
	require.Equal(t, 1, second.done)
	require.True(t, b.Lost())
	require.False(t, a.Lost())
}
