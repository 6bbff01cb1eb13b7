package task

import (
	"encoding/hex"
	"fmt"
	"strconv"
)

// Run is one generation of a task. Each run has one result.
type Run struct {
	Key
	Generation int
}

// Run returns which run of the task this is.
func (t *Task) Run() Run { return Run{t.Key(), t.Generation()} }

func (r Run) String() string {
	if r.Generation == 0 {
		return r.Key.String()
	}
	return fmt.Sprintf("%s, generation %d", r.Key, r.Generation)
}

// CallbackID returns the id of the callback that delivers the result of the run. It depends on the run only.
func (r Run) CallbackID() string {
	h := r.Hash()
	id := "evt_" + hex.EncodeToString(h[:])
	if r.Generation > 0 {
		id += "_" + strconv.Itoa(r.Generation)
	}
	return id
}
