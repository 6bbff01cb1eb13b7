package fleet

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Play is a way in which real devices have been seen to fail. A device plays it on command: see [Device.Play].
type Play struct {
	Name  string // kind/variant
	Says  string // what its clients see
	Fault Fault
	Limits
	Away Away
}

// Away is how a device that plays cannot be reached.
type Away string

// How a device cannot be reached.
const (
	AwayStopped   Away = "stopped"   // connections are refused
	AwayBlackhole Away = "blackhole" // connections are neither accepted nor refused; Linux only
	AwayNoTLS     Away = "no TLS"    // its URL starts with https, and it speaks HTTP
)

// Limits are what a device takes at most; 0 means any number.
type Limits struct {
	MaxItems   int   // items of a request, beyond which it answers 413 like TEI
	MaxHeaders int   // header lines, beyond which it answers 431 like hyper
	Context    int   // tokens of an item, beyond which it answers 400 like llama.cpp
	MaxBody    int64 // bytes of a request; 0 means what the spec says
}

// Kind is the first half of the name: plays of the same kind mean the same to clients.
func (p *Play) Kind() string { kind, _, _ := strings.Cut(p.Name, "/"); return kind }

// Plays returns all plays, those of a kind beside each other.
func Plays() []Play {
	return slices.Concat(awayPlays(), refusalPlays(), pausePlays(), failurePlays(), emptyPlays())
}

// FindPlay returns a play by its name. A kind alone means its first play.
func FindPlay(name string) (Play, error) {
	all := Plays()
	i := slices.IndexFunc(all, func(p Play) bool { return p.Name == name || p.Kind() == name })
	if i < 0 {
		var kinds []string
		for _, p := range all {
			kinds = append(kinds, p.Kind())
		}
		return Play{}, fmt.Errorf("no simulated device can play %q: use one of %s, or a variant such as %s", name, strings.Join(slices.Compact(kinds), ", "), all[0].Name)
	}
	return all[i], nil
}

// replies is a play that answers with a status and a body; header has names and values in turn.
func replies(name, says string, status int, body string, header ...string) Play {
	h := map[string]string{}
	for i := 0; i+1 < len(header); i += 2 {
		h[header[i]] = header[i+1]
	}
	return Play{Name: name, Says: says, Fault: Fault{Kind: Reply, Status: status, Body: body, Header: h}}
}

// status is a play that answers with a status alone.
func status(kind string, code int) Play {
	return replies(fmt.Sprintf("%s/%d", kind, code), strings.TrimSpace(fmt.Sprint(code, " ", http.StatusText(code))), code, "")
}

// broken is a play of a fault that needs no words.
func broken(name, says string, k FaultKind) Play {
	return Play{Name: name, Says: says, Fault: Fault{Kind: k}}
}

func awayPlays() []Play {
	return []Play{
		{Name: "refused/stopped", Says: "refuses connections", Away: AwayStopped},
		{Name: "connect_timeout/blackhole", Says: "does not accept connections", Away: AwayBlackhole},
		{Name: "tls/none", Says: "speaks HTTP where HTTPS is expected", Away: AwayNoTLS},
		broken("stale/kept", "resets a connection at the second request on it", CloseKept),
		broken("reset/reset", "resets the connection without an answer", Reset),
		broken("no_first_byte/hang", "accepts requests and never answers", Hang),
		broken("slow_body/stall", "sends half of an answer, and nothing more", Stall),
		broken("cut/truncate", "closes the connection halfway through the answer", Truncate),
	}
}

func refusalPlays() []Play {
	return []Play{
		replies("redirect/301", "redirects elsewhere for good", 301, "", "Location", "/elsewhere"),
		replies("redirect/307", "redirects elsewhere for now", 307, "", "Location", "/elsewhere"), status("redirect", 304),
		replies("invalid/400", "calls every request invalid", 400, `{"error":{"message":"no","type":"BadRequestError"}}`),
		replies("invalid/422", "calls every request invalid, like FastAPI", 422, `{"detail":[]}`), status("invalid", 418), status("invalid", 402),
		status("auth", 401), status("auth", 403),
		replies("auth/litellm", "wants another key, like LiteLLM without a database", 400, `{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}`),
		replies("no_endpoint/404", "does not have the endpoint", 404, "404 page not found"), status("no_endpoint", 405), status("no_endpoint", 410), status("no_endpoint", 501),
		replies("no_endpoint/llama.cpp", "has no embeddings, like llama.cpp without --embeddings", 501,
			`{"error":{"code":501,"message":"This server does not support embeddings. Start it with `+"`--embeddings`"+`","type":"not_supported_error"}}`),
		replies("no_model/vllm", "does not have the model, in vLLM's words", 404, `{"error":{"message":"The model m does not exist.","code":404}}`),
		replies("no_model/litellm", "does not have the model, in LiteLLM's words", 400, `{"error":{"message":"Invalid model name passed in model=m"}}`),
		{Name: "too_long/llama.cpp", Says: "has a context of one token", Limits: Limits{Context: 1}},
		replies("too_long/vllm", "calls every prompt too long, in vLLM's words", 400,
			`{"error":{"message":"This model's maximum context length is 4096 tokens. However, you requested 9100 tokens.","type":"BadRequestError","code":400}}`),
		replies("too_long/sglang", "calls every prompt too long, in SGLang's words", 400,
			`{"object":"error","message":"The input (9100 tokens) is longer than the model's context length (4096 tokens).","type":"BadRequestError","code":400}`),
		replies("too_long/500", "calls every prompt too long, like an older llama.cpp", 500,
			`{"error":{"code":500,"message":"the request exceeds the available context size. try increasing the context size","type":"server_error"}}`),
		replies("too_long/litellm", "calls every prompt too long, like LiteLLM in front of llama.cpp", 400,
			`{"error":{"message":"litellm.BadRequestError: OpenAIException - request (2031 tokens) exceeds the available context size (512 tokens), try increasing it. Received Model Group=m\nAvailable Model Group Fallbacks=None","type":null,"param":null,"code":"400"}}`),
		replies("too_long/llama.cpp-embeddings", "calls every input too large for a batch, like llama.cpp with --embeddings", 500,
			`{"error":{"code":500,"message":"input (1001 tokens) is too large to process. increase the physical batch size (current batch size: 512)","type":"server_error"}}`),
		replies("body_too_large/413", "calls every body too large, like nginx", 413, "<html>"),
		{Name: "body_too_large/small", Says: "takes bodies of 10 bytes", Limits: Limits{MaxBody: 10}},
		{Name: "batch_too_large/tei", Says: "takes two items at once, like TEI with --max-client-batch-size 2", Limits: Limits{MaxItems: 2}},
		{Name: "headers_too_large/hyper", Says: "takes two header lines", Limits: Limits{MaxHeaders: 2}},
	}
}

func pausePlays() []Play {
	until := status("paused", 503)
	until.Name, until.Says, until.Fault.Until = "paused/date", "503, with a date an hour from now", time.Hour
	return []Play{
		status("too_many", 429), replies("too_many/hour", "429, asking for a pause of an hour", 429, "", "Retry-After", "3600"),
		status("overloaded", 529),
		replies("paused/503", "503, asking for a pause of 20 s", 503, "", "Retry-After", "20"), until,
		replies("paused/529", "529, asking for a pause of 20 s", 529, "", "Retry-After", "20"),
		replies("paused/day", "503, asking for a pause of more than a day", 503, "", "Retry-After", "100000"),
		replies("loading/llama.cpp", "loads its model", 503, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`),
	}
}

func failurePlays() []Play {
	return []Play{
		status("not_now", 408), status("not_now", 409), status("not_now", 425), status("not_now", 499),
		replies("generation_failed/tgi", "fails every generation, like TGI", 424, `{"error":"Request failed during generation","error_type":"generation"}`),
		status("unavailable", 503), status("server_error", 500), status("server_error", 505), status("server_error", 599),
		replies("server_error/litellm", "generates, and then cannot read the answer, like LiteLLM with /v1/responses of llama.cpp", 500,
			`{"error":{"message":"litellm.APIConnectionError: APIConnectionError: OpenAIException - 4 validation errors for ResponsesAPIResponse","type":null,"param":null,"code":"500"}}`),
		status("bad_gateway", 502), status("gateway_timeout", 504),
		replies("bad_gateway/litellm", "does not reach the engine behind it, like LiteLLM", 500,
			`{"error":{"message":"litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.. Received Model Group=m\nAvailable Model Group Fallbacks=None","type":null,"param":null,"code":"500"}}`),
	}
}

func emptyPlays() []Play {
	response := func(state string) Play {
		p := replies("", "answers that the response is "+state, 200, `{"id":"resp_1","object":"response","status":"`+state+`","output":[]}`)
		p.Fault.Endpoint = "/v1/responses"
		return p
	}
	named := func(name string, p Play) Play { p.Name = name; return p }
	return []Play{
		broken("broken_json/half", "answers with broken JSON", BadJSON), replies("broken_json/empty", "answers with an empty body", 200, ""),
		replies("error_object/200", "answers 200 with an error", 200, `{"error":{"message":"worker limit reached","code":502}}`),
		replies("no_answer/null", "answers null", 200, "null"), replies("no_answer/list", "answers []", 200, "[]"), replies("no_answer/choices", "answers without choices", 200, `{"choices":[]}`),
		replies("aborted/abort", "aborts every generation", 200, `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"abort"}]}`),
		named("unfinished/queued", response("queued")), named("unfinished/in_progress", response("in_progress")),
		named("unsuccessful/failed", response("failed")), named("unsuccessful/cancelled", response("cancelled")),
		broken("endless/zeros", "answers without an end", Endless),
		broken("unsplit/partial", "answers half of the items of a batched request", Partial),
	}
}

// Play makes the device play, from the next request on; Play{} ends it.
func (d *Device) Play(p Play) error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.closed {
		return fmt.Errorf("simulated device %s: the fleet is closed", d.spec.ID)
	}
	if d.unplug != nil {
		d.unplug()
		d.unplug = nil
	}
	d.playing.Store(&p)
	d.fault.Store(arm(p.Fault))
	switch p.Away {
	case AwayStopped:
		d.stop()
		return nil
	case AwayBlackhole:
		d.stop()
		var err error
		d.unplug, err = blackhole(d.port)
		return err
	}
	return d.start()
}

// limits are what the device takes now.
func (d *Device) limits() Limits {
	l := Limits{MaxItems: d.spec.MaxItems, MaxHeaders: d.spec.MaxHeaders, Context: d.spec.Context, MaxBody: d.spec.MaxBody}
	if p := d.playing.Load(); p != nil {
		l.MaxItems, l.MaxHeaders, l.Context = orDefault(p.MaxItems, l.MaxItems), orDefault(p.MaxHeaders, l.MaxHeaders), orDefault(p.Context, l.Context)
		l.MaxBody = orDefault(p.MaxBody, l.MaxBody)
	}
	return l
}
