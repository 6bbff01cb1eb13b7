// Package jobs turns a file into many tasks and their results into a file.
//
// A file has one task a line: either a line of OpenAI's batch format
// (custom_id, method, url, body) or a task object of Batchyard's own; which, is
// told line by line.
//
//	file ──▶ Plan: every line is checked ──▶ Submit: in chunks, several in flight
//	              │                              │
//	              ▼                              ▼
//	   *InvalidError: the bad lines        the pipeline ──▶ WriteResults ──▶ file
//
// Nothing is submitted before every line was found good. A task's id comes from
// the job's id and the number of its line, and the job's id from the content of
// the file unless one is given: submitting the same file again, after a crash or
// by mistake, is the same tasks. A task object that has an id keeps it.
//
// Memory does not grow with the length of lines, and by a few bytes with their
// number: 16 for each custom_id and id, so that they can be told apart, and a bit
// for the format.
//
// The output has a line for each task, in the order of the input. It is written
// under another name and renamed when it is complete, so that a file of that name
// is never half an answer.
package jobs
