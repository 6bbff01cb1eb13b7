package prove

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

// addAnswers adds to rows with the digest of an answer that answer, if a line of the job's output has it in another
// form: people who have only the output could not compute the digest.
func (p *prover) addAnswers(ctx context.Context, tenant string, rows []*Row) error {
	of := map[string][]*Row{}
	var ids []string
	for _, r := range rows {
		if r.Text(audit.ColAction) == string(task.AttemptSucceeded) && len(r.Fields[audit.ColOutputSHA256]) == sha256.Size {
			id := r.Text(audit.ColTask)
			if p.whole[id] {
				continue // the proof has all of the result
			}
			of[id] = append(of[id], r)
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	found, err := p.tx.Query(ctx, "SELECT task_id, output::text FROM results WHERE tenant = $1 AND task_id = ANY ($2) AND output IS NOT NULL", tenant, ids)
	if err != nil {
		return fmt.Errorf("reading the answers: %w", err)
	}
	var id, output string
	if _, err := pgx.ForEachRow(found, []any{&id, &output}, func() error {
		answer := []byte(output)
		if bytes.Equal(audit.AnswerForm(answer), answer) {
			return nil
		}
		sum := sha256.Sum256(answer)
		for _, r := range of[id] {
			if bytes.Equal(r.Fields[audit.ColOutputSHA256], sum[:]) {
				r.Answer = answer
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("reading the answers: %w", err)
	}
	return nil
}
