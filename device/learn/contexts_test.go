package learn

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
)

func TestContexts(t *testing.T) {
	t.Parallel()
	var c Contexts
	c.Worked("m", 10)
	require.Empty(t, c.Known())
	c.Said("m", 100)
	c.Said("m", 0)
	c.Said("m", device.MaxContext+1)
	c.Worked("m", 100)
	require.Equal(t, map[string]int{"m": 100}, c.Known())
	c.Said("m", 200) // it was started again
	require.Equal(t, map[string]int{"m": 200}, c.Known())
	c.Worked("m", 201)
	require.Empty(t, c.Known(), "what it said holds no more")
	for i := range 2 * device.MaxBatches {
		c.Seed(map[string]int{fmt.Sprint(i): 1})
	}
	require.Len(t, c.Known(), device.MaxBatches)
}
