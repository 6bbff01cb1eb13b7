package current

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReport(t *testing.T) {
	t.Parallel()
	var r Report
	now := time.Now()
	require.Nil(t, r.Due(now, time.Minute), "nothing was added")
	r.Add(2)
	r.Add(1)
	require.Equal(t, []int{1, 2}, r.Due(now, time.Minute))
	r.Add(1)
	require.Nil(t, r.Due(now.Add(time.Second), time.Minute), "it was reported a moment ago")
	r.Add(3)
	require.Equal(t, []int{1, 3}, r.Due(now.Add(2*time.Second), time.Minute), "news do not wait")
	r.Add(2)
	require.Equal(t, []int{2}, r.Due(now.Add(3*time.Second), time.Minute), "it was missing the last time")
	r.Add(2)
	require.Nil(t, r.Due(now.Add(4*time.Second), time.Minute))
	require.Equal(t, []int{2}, r.Due(now.Add(time.Hour), time.Minute))
}
