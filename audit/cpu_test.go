package audit

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// cpuOf is the processor time of the database's sessions in microseconds. On a
// busy machine it says more than the clock.
func cpuOf(tb testing.TB, pool *pgxpool.Pool) (us float64) {
	rows, err := pool.Query(tb.Context(), "SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
	require.NoError(tb, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(tb, err)
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		for _, s := range f[11:13] { // utime and stime, in hundredths of a second
			n, err := strconv.ParseFloat(s, 64)
			require.NoError(tb, err)
			us += n * 1e4
		}
	}
	return us
}
