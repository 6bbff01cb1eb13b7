package api

import (
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/negotiate"
)

// contract is what the description says of every request to an operation, beside
// its body.
type contract struct {
	operation string
	query     []string // names of its query parameters
	sends     []string // content types of its success
}

// contracts reads them from the description, so that what is checked is what
// clients were promised. The keys are the mux's patterns.
func contracts(api *huma.OpenAPI) map[string]contract {
	out := map[string]contract{}
	for path, item := range api.Paths {
		for method, op := range operations(item) {
			c := contract{operation: op.OperationID}
			for _, p := range op.Parameters {
				if p.In == "query" {
					c.query = append(c.query, p.Name)
				}
			}
			slices.Sort(c.query)
			for status, r := range op.Responses {
				if strings.HasPrefix(status, "2") {
					for kind := range r.Content {
						c.sends = append(c.sends, kind)
					}
				}
			}
			slices.Sort(c.sends)
			out[method+" "+path] = c
		}
	}
	return out
}

// guard refuses a request that no operation takes, nil if it is sound.
func (s *Server) guard(r *http.Request, c contract) *Problem {
	if headerBytes(r) > s.cfg.MaxHeader {
		return problem(http.StatusRequestHeaderFieldsTooLarge, "the request line and headers are larger than %d bytes; send fewer or shorter ones, or raise api.max_header_bytes", s.cfg.MaxHeader)
	}
	if !negotiate.Acceptable(r.Header.Values("Accept"), c.sends) {
		return problem(http.StatusNotAcceptable, "the response is %s; list it in the Accept header, or send none", strings.Join(c.sends, " or "))
	}
	return checkQuery(r.URL.RawQuery, c.query)
}

// headerBytes counts the request line and the headers as they came.
func headerBytes(r *http.Request) int64 {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return int64(n)
}

// checkQuery refuses what would otherwise be dropped silently: a parameter that
// is misspelt, repeated, empty or not text.
func checkQuery(raw string, known []string) *Problem {
	if raw == "" {
		return nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return problem(http.StatusBadRequest, "malformed query string: percent-encode each name and value, and separate parameters with &")
	}
	var errs []ProblemError
	for name, v := range values {
		var detail string
		switch bad := badText(v[0]); {
		case !slices.Contains(known, name):
			detail = "unknown query parameter: " + expected(known)
		case len(v) > 1:
			detail = "given " + strconv.Itoa(len(v)) + " times: send it once"
		case v[0] == "":
			detail = "empty: send a value, or leave the parameter out"
		case bad != "":
			detail = bad + ": send printable UTF-8 text"
		default:
			continue
		}
		errs = append(errs, ProblemError{clipName(name), detail})
	}
	if len(errs) == 0 {
		return nil
	}
	slices.SortFunc(errs, func(a, b ProblemError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return fieldProblem(http.StatusUnprocessableEntity, errs[:min(len(errs), maxProblemErrors)], max(0, len(errs)-maxProblemErrors))
}

func expected(known []string) string {
	if len(known) == 0 {
		return "leave it out, this operation takes none"
	}
	return "use " + strings.Join(known, ", ")
}

// wantsJSON refuses a body that says that it is something else. Without a
// Content-Type it is taken for JSON.
func wantsJSON(r *http.Request) *Problem {
	header := r.Header.Get("Content-Type")
	if header == "" {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(header); err != nil || kind != "application/json" {
		return problem(http.StatusUnsupportedMediaType, "unsupported Content-Type: send application/json")
	}
	return nil
}
