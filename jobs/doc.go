// Package jobs turns a file into many tasks and their results into a file.
//
// Each line of the file is a task: either a line in OpenAI's batch format (custom_id,
// method, url, body) or a Batchyard task object. The format is detected line by line. The
// file may be compressed with gzip or zstd; its content is then kept in a temporary file. A
// file in another format gets one error, which names the service that it looks like.
//
//	file ──▶ Plan: every line is checked ──▶ Submit: in chunks, several in flight
//	              │                              │
//	              ▼                              ▼
//	   *InvalidError: the bad lines        the pipeline ──▶ WriteResults ──▶ file
//
// Nothing is submitted before every line has been checked. A task's id is made of the
// job's id and its line number, and the job's id, unless set, of the file's content:
// submitting the same file again, after a crash or by mistake, submits the same tasks. A
// task object that has an id keeps it.
//
// Memory does not depend on the length of lines and grows by a few bytes for each: 16 for
// each custom_id and id, to find duplicates, and a bit for the format.
//
// The output has one line per task, in the order of the input. It is written under another
// name and renamed once it is complete, so the output file is never half an answer.
package jobs
