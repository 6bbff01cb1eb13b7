package workers

import (
	"testing"

	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.StageMain(m) }
