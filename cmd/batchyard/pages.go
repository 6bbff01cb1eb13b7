package main

import (
	"fmt"

	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// listed says how much of a list to show.
type listed struct {
	limit int
	all   bool // limit does not count
	page  int  // most rows of one page
}

// eachPage shows a list one page at a time, because it may have any length. show gets the size, the cursor
// and the number of a page, and returns its rows and the cursor of the next one.
func eachPage(c *cli.Env, l listed, show func(limit int, cursor string, number int) (rows int, next string, err error)) error {
	left, cursor := l.limit, ""
	for number := 0; ; number++ {
		limit := l.page
		if !l.all {
			limit = min(left, l.page)
		}
		rows, next, err := show(limit, cursor, number)
		if err != nil || next == "" {
			return err
		}
		if left -= rows; !l.all && left <= 0 {
			if !c.JSON {
				_, _ = fmt.Fprintf(c.Err, "there are more; use --limit or --all\n")
			}
			return nil
		}
		cursor = next
	}
}
