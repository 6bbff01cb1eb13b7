package batches

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/task"
)

// Bounds of requests about files.
const (
	maxFiles   = 10_000
	maxPurpose = 64
	maxField   = 1024 // bytes of a field of a form
	maxFields  = 16
	minSeconds = 3600
	maxSeconds = 2592000
)

// fileObject is a file in OpenAI's API.
type fileObject struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	Bytes     int64  `json:"bytes"`
	CreatedAt int64  `json:"created_at"`
	ExpiresAt *int64 `json:"expires_at"`
	Filename  string `json:"filename"`
	Purpose   string `json:"purpose"`
	Status    string `json:"status"`
}

func objectOf(f *files.File) fileObject {
	return fileObject{ID: f.ID, Object: "file", Bytes: f.Bytes, CreatedAt: f.CreatedAt.Unix(), ExpiresAt: unix(f.ExpiresAt), Filename: f.Name, Purpose: f.Purpose, Status: "processed"}
}

func unix(t *time.Time) *int64 {
	if t == nil {
		return nil
	}
	n := t.Unix()
	return &n
}

// upload stores a file while it arrives. The fields of the form may come in any order.
func (a *API) upload(w http.ResponseWriter, r *http.Request) {
	f, err := a.receive(w, r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	openai.WriteJSON(w, http.StatusOK, objectOf(f))
}

// slowBody gives the client a bounded time for each part of the body, instead of one for all of it.
type slowBody struct {
	io.Reader
	c       *http.ResponseController
	timeout time.Duration
}

func (b *slowBody) Read(to []byte) (int, error) {
	_ = b.c.SetReadDeadline(time.Now().Add(b.timeout)) // a recorder in a test has none
	return b.Reader.Read(to)
}

func (a *API) receive(w http.ResponseWriter, r *http.Request) (*files.File, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return nil, &openai.Error{Status: http.StatusUnsupportedMediaType, Message: "Send the file as multipart/form-data."}
	}
	most := a.Files.Config().MaxBytes
	controller := http.NewResponseController(w)
	body := &slowBody{http.MaxBytesReader(w, r.Body, most+1<<20), controller, a.BodyTimeout}
	form := &form{fields: map[string]string{}}
	defer form.abort(r)
	err = form.read(multipart.NewReader(body, params["boundary"]), func(name string) (*files.Writer, error) {
		c := openai.CallerOf(r.Context())
		return a.Files.Create(r.Context(), files.File{Tenant: c.Tenant, Purpose: files.Batch, Name: name})
	}, most)
	if err != nil {
		return nil, err
	}
	_ = controller.SetReadDeadline(time.Time{}) // the request has been read
	if err := form.check(); err != nil {
		return nil, err
	}
	ctx, cancel := a.within(r)
	defer cancel()
	if err := form.file.Finish(); err != nil {
		return nil, err
	}
	f := &form.file.File
	// The event first: no file is there that the audit log does not know.
	if err := a.record(r, task.FileUploaded, "file", f.ID, map[string]any{"filename": f.Name, "purpose": f.Purpose, "bytes": f.Bytes, "sha256": hex.EncodeToString(f.SHA256)}); err != nil {
		return nil, err
	}
	return f, form.file.Commit(ctx, nil)
}

// form is an upload.
type form struct {
	fields map[string]string
	file   *files.Writer
}

// abort removes what was not committed.
func (f *form) abort(r *http.Request) {
	if f.file != nil {
		f.file.Abort(r.Context())
	}
}

// read reads the parts of the form, and the file into what create returns.
func (f *form) read(parts *multipart.Reader, create func(name string) (*files.Writer, error), most int64) error {
	for {
		p, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return broken(err, most)
		}
		switch name := p.FormName(); {
		case name == "file" && f.file != nil:
			return openai.Invalid("file", "There are two files: upload one at a time.")
		case name == "file":
			if f.file, err = create(fileName(p)); err != nil {
				return err
			}
			if err := f.save(p, most); err != nil {
				return err
			}
		case len(f.fields) == maxFields:
			return openai.Invalid("", "The form has too many fields.")
		default:
			value, err := io.ReadAll(io.LimitReader(p, maxField+1))
			if err != nil {
				return broken(err, most)
			}
			if len(value) > maxField || !utf8.Valid(value) {
				return openai.Invalid("", "A field of the form is too long, or not UTF-8.")
			}
			f.fields[name] = string(value)
		}
	}
}

// save copies the file. Errors of the store are its own, and others are the client's.
func (f *form) save(p io.Reader, most int64) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := p.Read(buf)
		if f.file.File.Bytes+int64(n) > most {
			return tooLarge(most)
		}
		if _, werr := f.file.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return broken(err, most)
		}
	}
}

func tooLarge(most int64) *openai.Error {
	return &openai.Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("The file is larger than %d bytes: split it, or have the operator raise files.max_bytes.", most), Param: "file", Code: "file_too_large"}
}

// broken returns the error for a body that cannot be read.
func broken(err error, most int64) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return tooLarge(most)
	}
	return &openai.Error{Status: http.StatusBadRequest, Message: "The body is not a complete form: send the request again."}
}

// fileName returns the name of an uploaded file as plain text.
func fileName(p *multipart.Part) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(p.FileName(), ""))
	runes := []rune(name)
	if len(runes) == 0 {
		return "upload.jsonl"
	}
	return string(runes[:min(len(runes), task.MaxFileName)])
}

// check checks the fields once all are known.
func (f *form) check() error {
	switch {
	case f.file == nil:
		return openai.Invalid("file", "The form has no file.")
	case f.fields["purpose"] != files.Batch:
		return openai.Invalid("purpose", `Unsupported purpose: send "batch". Other purposes of OpenAI's API have no use here.`)
	}
	for name := range f.fields {
		if name != "purpose" && name != "expires_after[anchor]" && name != "expires_after[seconds]" {
			return openai.Invalid("", "Unknown field in the form: send purpose, file, expires_after[anchor] and expires_after[seconds].")
		}
	}
	anchor, seconds := f.fields["expires_after[anchor]"], f.fields["expires_after[seconds]"]
	if anchor == "" && seconds == "" {
		return nil
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		n = 0
	}
	if err := checkExpiry(anchor, n); err != nil {
		return err
	}
	at := f.file.File.CreatedAt.Add(time.Duration(n) * time.Second)
	f.file.File.ExpiresAt = &at
	return nil
}

// checkExpiry checks expires_after or output_expires_after.
func checkExpiry(anchor string, seconds int64) error {
	if anchor != "created_at" {
		return openai.Invalid("expires_after.anchor", `Unknown anchor: send "created_at".`)
	}
	if seconds < minSeconds || seconds > maxSeconds {
		return openai.Invalid("expires_after.seconds", fmt.Sprintf("Out of range: send %d to %d seconds.", minSeconds, maxSeconds))
	}
	return nil
}

func (a *API) listFiles(w http.ResponseWriter, r *http.Request) {
	limit, after, err := pageOf(r, maxFiles, maxFiles)
	order := files.Order(r.URL.Query().Get("order"))
	if purpose := r.URL.Query().Get("purpose"); err == nil && utf8.RuneCountInString(purpose) > maxPurpose {
		err = openai.Invalid("purpose", "Too long: send batch or batch_output.")
	}
	if err == nil && order != "" && order != files.Newest && order != files.Oldest {
		err = openai.Invalid("order", "Unknown order: send asc or desc.")
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	ctx, cancel := a.within(r)
	defer cancel()
	page, more, err := a.Files.List(ctx, files.Filter{Tenant: openai.CallerOf(ctx).Tenant, Purpose: r.URL.Query().Get("purpose"), After: after, Limit: limit, Order: order})
	if errors.Is(err, files.ErrNotFound) {
		err = openai.NotFound("after", "No such file: there is none with the id of after.")
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	out := listOf[fileObject]{Object: "list", Data: make([]fileObject, len(page)), HasMore: more}
	for i, f := range page {
		out.Data[i] = objectOf(f)
	}
	if len(page) > 0 {
		out.FirstID, out.LastID = &page[0].ID, &page[len(page)-1].ID
	}
	openai.WriteJSON(w, http.StatusOK, out)
}

// found returns the file that the path names.
func (a *API) found(r *http.Request) (*files.File, error) {
	ctx, cancel := a.within(r)
	defer cancel()
	return a.Files.Get(ctx, openai.CallerOf(ctx).Tenant, r.PathValue("file_id"))
}

func (a *API) file(w http.ResponseWriter, r *http.Request) {
	f, err := a.found(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	openai.WriteJSON(w, http.StatusOK, objectOf(f))
}

// deleted answers a delete.
type deleted struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Deleted bool   `json:"deleted"`
}

func (a *API) deleteFile(w http.ResponseWriter, r *http.Request) {
	f, err := a.found(r)
	if err == nil {
		err = a.record(r, task.FileDeleted, "file", f.ID, map[string]any{"filename": f.Name, "bytes": f.Bytes})
	}
	if err == nil {
		ctx, cancel := a.within(r)
		defer cancel()
		err = a.Files.Delete(ctx, f.Tenant, f.ID)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	openai.WriteJSON(w, http.StatusOK, deleted{ID: f.ID, Object: "file", Deleted: true})
}

// content sends a file. A connection that breaks off means that a part is missing: the length was announced.
func (a *API) content(w http.ResponseWriter, r *http.Request) {
	f, err := a.found(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(f.Bytes, 10))
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": f.Name}))
	if r.Method == http.MethodHead || f.Bytes == 0 {
		return
	}
	content, err := a.Files.Read(r.Context(), f.ID)
	if err != nil {
		h.Del("Content-Length")
		h.Del("Content-Disposition")
		a.fail(w, r, err)
		return
	}
	defer func() { _ = content.Close() }() // it was only read
	if _, err := io.Copy(w, content); err != nil {
		if r.Context().Err() == nil {
			a.Logger.Warn("sending a file broke off", "trace_id", openai.CallerOf(r.Context()).TraceID, "file_id", f.ID, "error", err)
		}
		panic(http.ErrAbortHandler) // a part must not be taken for the whole
	}
}
