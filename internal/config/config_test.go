package config_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/internal/fuzzing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

type rootConfig struct {
	Router routerConfig  `yaml:"router" doc:"Where tasks run."`
	Store  storeConfig   `yaml:"store" doc:"Where things are kept."`
	Drain  time.Duration `yaml:"drain_timeout" default:"28s" min:"1s" doc:"After SIGTERM, the process ends within this time."`
	Inner  string        `yaml:"-"`
}

type routerConfig struct {
	Policy      string        `yaml:"policy" default:"fast" enum:"fast,fair" doc:"How a device is chosen."`
	WindowCount int           `yaml:"window_count" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Tasks held in memory per topic; what is beyond them stays where it is, in the log, until there is room again."`
	WindowBytes int64         `yaml:"window_bytes" default:"64MiB" unit:"bytes" min:"1048576" doc:"Bytes held in memory."`
	Ahead       float64       `yaml:"ahead" default:"0.5" unit:"share of slots" min:"0" max:"8" doc:"Tasks beyond the slots."`
	Hop         time.Duration `yaml:"hop" default:"5ms" doc:"Time to a device."`
	Strict      bool          `yaml:"strict" default:"true" doc:"Whether to be strict."`
	Rules       []ruleConfig  `yaml:"rules" doc:"Exceptions."`
}

type ruleConfig struct {
	Model    string        `yaml:"model" doc:"Name of the model."`
	MaxCount int           `yaml:"max_count" default:"100" min:"1" max:"4096" doc:"Tasks in a batch."`
	MaxWait  time.Duration `yaml:"max_wait" default:"10s" doc:"How long it waits."`
}

type storeConfig struct {
	URL         string            `yaml:"url" default:"postgres://localhost/x" secret:"true" doc:"Where it is."`
	PasswordEnv string            `yaml:"password_env" default:"BATCHYARD_STORE_PASSWORD" doc:"Variable with the password."`
	Brokers     []string          `yaml:"brokers" default:"a:1,b:2" doc:"Servers."`
	Fallback    map[string]string `yaml:"fallback" doc:"Smaller models."`
	TLS         tlsConfig         `yaml:"tls"`
}

type tlsConfig struct {
	Enabled bool   `yaml:"enabled" default:"false" doc:"Whether to encrypt."`
	CAFile  string `yaml:"ca_file" default:"" doc:"File of authorities."`
}

func defaults() rootConfig {
	return rootConfig{
		Router: routerConfig{Policy: "fast", WindowCount: 4096, WindowBytes: 64 << 20, Ahead: 0.5, Hop: 5 * time.Millisecond, Strict: true},
		Store:  storeConfig{URL: "postgres://localhost/x", PasswordEnv: "BATCHYARD_STORE_PASSWORD", Brokers: []string{"a:1", "b:2"}},
		Drain:  28 * time.Second,
	}
}

// file writes a configuration file and changes to its directory, so that errors
// show its short name.
func file(t *testing.T, content string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("config.yaml", []byte(content), 0o600))
	return "config.yaml"
}

func TestLayers(t *testing.T) {
	var cfg rootConfig
	require.NoError(t, config.Load(&cfg, config.Options{}))
	require.Equal(t, defaults(), cfg)

	path := file(t, `
router:
  policy: fair
  window_count: 100
  window_bytes: 2MiB
  ahead: 1.5
  hop: 1h30m
  strict: false
  rules:
    - model: m.1:70b
      max_wait: 250ms
    - {max_count: 7}
store: {brokers: [c:3], fallback: {"big:70b": small.1}, tls: {enabled: true}}
drain_timeout: 2d
`)
	err := config.Load(&cfg, config.Options{
		Path: path,
		Env: []string{
			"BATCHYARD_ROUTER_WINDOW_COUNT=200", "BATCHYARD_STORE_BROKERS=d:4, e:5", "BATCHYARD_STORE_TLS_CA_FILE=/ca",
			"BATCHYARD_STORE_PASSWORD=s3cret", "HOME=/root", "ROUTER_POLICY=ignored",
		},
		Overrides: map[string]string{"router.window_count": "300", "store.fallback": "a=b, c=d"},
	})
	require.NoError(t, err)
	want := defaults()
	want.Router = routerConfig{
		Policy: "fair", WindowCount: 300, WindowBytes: 2 << 20, Ahead: 1.5, Hop: 90 * time.Minute,
		Rules: []ruleConfig{{Model: "m.1:70b", MaxCount: 100, MaxWait: 250 * time.Millisecond}, {MaxCount: 7, MaxWait: 10 * time.Second}},
	}
	want.Store.Brokers = []string{"d:4", "e:5"}
	want.Store.Fallback = map[string]string{"a": "b", "c": "d"}
	want.Store.TLS = tlsConfig{Enabled: true, CAFile: "/ca"}
	want.Drain = 48 * time.Hour
	require.Equal(t, want, cfg)
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		opts config.Options
		want []string
	}{
		"misspelled key":                  {file: "router:\n  # why\n  windw_count: 3\n", want: []string{"config.yaml:3: unknown key router.windw_count; did you mean router.window_count?"}},
		"misspelled section":              {file: "ruoter:\n  window_count: 3\n", want: []string{"config.yaml:1: unknown key ruoter; did you mean router?"}},
		"key of another section":          {file: "router:\n  brokers: [x]\n", want: []string{"config.yaml:2: unknown key router.brokers; did you mean store.brokers?"}},
		"unrelated key":                   {file: "telephone: 3\n", want: []string{"config.yaml:1: unknown key telephone: `batchyard config print --commented` lists all keys"}},
		"key with a newline":              {file: "\"a\\nb\": 3\n", want: []string{"config.yaml:1: unknown key a b: `batchyard config print --commented` lists all keys"}},
		"string for an integer":           {file: "router:\n  window_count: many\n", want: []string{`config.yaml:2: router.window_count: invalid value "many": use an integer such as 16`}},
		"duration without a unit":         {file: "router: {hop: 250}", want: []string{`config.yaml:1: router.hop: invalid value "250": use a duration such as 250ms, 30s or 12h`}},
		"invalid size":                    {file: "router: {window_bytes: 4 MiBs}", want: []string{`config.yaml:1: router.window_bytes: invalid value "4 MiBs": use a size such as 65536, 512KiB or 4MiB`}},
		"invalid boolean":                 {file: "router: {strict: maybe}", want: []string{`config.yaml:1: router.strict: invalid value "maybe": use true or false`}},
		"NaN in the file":                 {file: "router: {ahead: .nan}", want: []string{`config.yaml:1: router.ahead: invalid value ".nan": use a number such as 0.5`}},
		"NaN in an override":              {opts: config.Options{Overrides: map[string]string{"router.ahead": "NaN"}}, want: []string{`router.ahead: invalid value "NaN": use a number such as 0.5`}},
		"too small":                       {file: "router:\n  window_count: 7\n", want: []string{"config.yaml:2: router.window_count: 7 is too small: the minimum is 64"}},
		"size too small":                  {file: "router: {window_bytes: 4KiB}", want: []string{"config.yaml:1: router.window_bytes: 4KiB is too small: the minimum is 1MiB"}},
		"too large":                       {file: "router: {ahead: 8.5}", want: []string{"config.yaml:1: router.ahead: 8.5 is too large: the maximum is 8"}},
		"value not in the enum":           {file: "router: {policy: fats}", want: []string{`config.yaml:1: router.policy: "fats" is not one of fast, fair`}},
		"value for a section":             {file: "store: here\n", want: []string{"config.yaml:1: store: expected a section with settings below it"}},
		"section for a value":             {file: "router: {hop: {a: 1}}", want: []string{"config.yaml:1: router.hop: found a section: use a duration such as 250ms, 30s or 12h"}},
		"map for a list":                  {file: "store: {brokers: {}}", want: []string{"config.yaml:1: store.brokers: found a section: use a list such as [a, b]"}},
		"string for a map":                {file: "store: {fallback: small}", want: []string{`config.yaml:1: store.fallback: invalid value "small": use a map such as {name: value}`}},
		"list for a map":                  {file: "store: {fallback: [small]}", want: []string{"config.yaml:1: store.fallback: found a list: use a map such as {name: value}"}},
		"lists in a list":                 {file: "store: {brokers: [[a]]}", want: []string{"config.yaml:1: store.brokers: every entry must be a single value: use a list such as [a, b]"}},
		"duplicate key in a map":          {file: "store: {fallback: {a: b, a: c}}", want: []string{`config.yaml:1: store.fallback: "a" is set twice`}},
		"missing value":                   {file: "store:\n  brokers:\n", want: []string{"config.yaml:2: store.brokers: missing value: use a list such as [a, b], or remove the line"}},
		"duplicate key":                   {file: "drain_timeout: 2s\ndrain_timeout: 3s\n", want: []string{"config.yaml:2: drain_timeout is set twice"}},
		"list of objects":                 {file: "router:\n  rules:\n    - modle: x\n    - max_count: 0\n    - 3\n", want: []string{"config.yaml:3: unknown key router.rules[0].modle; did you mean router.rules[0].model?", "config.yaml:4: router.rules[1].max_count: 0 is too small: the minimum is 1", "config.yaml:5: router.rules[2]: expected a section with settings below it"}},
		"string for a list of objects":    {file: "router: {rules: x}", want: []string{"config.yaml:1: router.rules: expected a list: start each entry with a dash"}},
		"alias":                           {file: "router:\n  hop: &h 3s\ndrain_timeout: *h\n", want: []string{"config.yaml:3: drain_timeout: aliases are not supported: write out the value"}},
		"merge":                           {file: "router: &r\n  hop: 3s\nstore:\n  <<: *r\n", want: []string{"config.yaml:4: unknown key store.<<: `batchyard config print --commented` lists all keys"}},
		"list at the top":                 {file: "- a\n", want: []string{"config.yaml:1: top level: expected a section with settings below it"}},
		"two documents":                   {file: "drain_timeout: 2s\n---\ndrain_timeout: 3s\n", want: []string{"config.yaml:2: found a second YAML document: put all settings into one"}},
		"invalid YAML":                    {file: "router:\n\t- x", want: []string{"config.yaml: invalid YAML: line 2: found character that cannot start any token"}},
		"misspelled variable":             {opts: config.Options{Env: []string{"BATCHYARD_ROUTER_WINDW_COUNT=3"}}, want: []string{"unknown environment variable BATCHYARD_ROUTER_WINDW_COUNT; did you mean BATCHYARD_ROUTER_WINDOW_COUNT?"}},
		"variable without a setting":      {opts: config.Options{Env: []string{"BATCHYARD_STORE_TELEPHONE_NUMBER=3"}}, want: []string{"unknown environment variable BATCHYARD_STORE_TELEPHONE_NUMBER: there is no such setting; unset it"}},
		"variable of the wrong type":      {opts: config.Options{Env: []string{"BATCHYARD_DRAIN_TIMEOUT=soon"}}, want: []string{`environment variable BATCHYARD_DRAIN_TIMEOUT: drain_timeout: invalid value "soon": use a duration such as 250ms, 30s or 12h`}},
		"variable for a list of objects":  {opts: config.Options{Env: []string{"BATCHYARD_ROUTER_RULES=x"}}, want: []string{"environment variable BATCHYARD_ROUTER_RULES: router.rules can only be set in the configuration file"}},
		"invalid pair":                    {opts: config.Options{Env: []string{"BATCHYARD_STORE_FALLBACK=a"}}, want: []string{`environment variable BATCHYARD_STORE_FALLBACK: store.fallback: invalid pair "a": use name=value, separated by commas`}},
		"misspelled override":             {opts: config.Options{Overrides: map[string]string{"router.polcy": "fast"}}, want: []string{"unknown key router.polcy; did you mean router.policy?"}},
		"all problems at once":            {file: "router: {hop: x, policy: y}\n", opts: config.Options{Env: []string{"BATCHYARD_DRAIN_TIMEOUT=0s"}}, want: []string{`config.yaml:1: router.hop: invalid value "x": use a duration such as 250ms, 30s or 12h`, `config.yaml:1: router.policy: "y" is not one of fast, fair`, "environment variable BATCHYARD_DRAIN_TIMEOUT: drain_timeout: 0s is too small: the minimum is 1s"}},
		"variable overrides a valid file": {file: "drain_timeout: 2s\n", opts: config.Options{Env: []string{"BATCHYARD_DRAIN_TIMEOUT=0s"}}, want: []string{"environment variable BATCHYARD_DRAIN_TIMEOUT: drain_timeout: 0s is too small: the minimum is 1s"}},
		"variable and file are invalid":   {file: "drain_timeout: 0s\n", opts: config.Options{Env: []string{"BATCHYARD_DRAIN_TIMEOUT=x"}}, want: []string{`environment variable BATCHYARD_DRAIN_TIMEOUT: drain_timeout: invalid value "x": use a duration such as 250ms, 30s or 12h`, "config.yaml:1: drain_timeout: 0s is too small: the minimum is 1s"}},
		"override is invalid":             {file: "drain_timeout: 2s\n", opts: config.Options{Env: []string{"BATCHYARD_DRAIN_TIMEOUT=3s"}, Overrides: map[string]string{"drain_timeout": "0s"}}, want: []string{"drain_timeout: 0s is too small: the minimum is 1s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.file != "" {
				c.opts.Path = file(t, c.file)
			}
			var cfg rootConfig
			err := config.Load(&cfg, c.opts)
			var all *config.Error
			require.ErrorAs(t, err, &all)
			require.Equal(t, c.want, all.Lines)
		})
	}
}

func TestUnrelatedVariablesAreIgnored(t *testing.T) {
	t.Parallel()
	var cfg rootConfig
	require.NoError(t, config.Load(&cfg, config.Options{Env: []string{
		"BATCHYARD_SERVER=http://x", "BATCHYARD_TEST_SERVICES=real", "BATCHYARD_CACHE=/c",
		"BATCHYARD_STORE_PASSWORD=x", // named by store.password_env
		"BATCHYARD_STORE_SERVICE_HOST=10.0.0.1", "BATCHYARD_STORE_SERVICE_PORT_SQL=5432",
		"BATCHYARD_STORE_PORT=tcp://10.0.0.1:5432", "BATCHYARD_STORE_PORT_5432_TCP_ADDR=10.0.0.1",
	}}))
	require.Equal(t, defaults(), cfg)
}

func TestManyErrorsAreTruncated(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		b.WriteString("key" + strings.Repeat("x", i) + ": 1\n")
	}
	var cfg rootConfig
	err := config.Load(&cfg, config.Options{Path: file(t, b.String())})
	var all *config.Error
	require.ErrorAs(t, err, &all)
	require.Len(t, all.Lines, 21)
	require.Equal(t, "and 480 more", all.Lines[20])
	for _, line := range all.Lines {
		require.Less(t, len(line), 300)
	}
}

func TestUnreadableFiles(t *testing.T) {
	var cfg rootConfig
	t.Chdir(t.TempDir())
	err := config.Load(&cfg, config.Options{Path: "no.yaml"})
	require.EqualError(t, err, "there is no configuration file no.yaml: create one with `batchyard config print --commented > no.yaml`")
	require.NoError(t, os.WriteFile("big.yaml", bytes.Repeat([]byte("# too much\n"), 100_000), 0o600))
	require.ErrorContains(t, config.Load(&cfg, config.Options{Path: "big.yaml"}), "larger than")
	require.Error(t, config.Load(&cfg, config.Options{Path: "."}))
	require.NoError(t, os.WriteFile("empty.yaml", []byte("# nothing\n"), 0o600))
	require.NoError(t, config.Load(&cfg, config.Options{Path: "empty.yaml"}))
	require.Equal(t, defaults(), cfg)
}

// A few bytes of YAML that expand to gigabytes must fail instead of being expanded.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := range 20 {
		n := string(rune('a' + i))
		m := "*a0"
		if i > 0 {
			m = "*" + string(rune('a'+i-1))
		}
		b.WriteString(n + ": &" + n + " [" + strings.TrimSuffix(strings.Repeat(m+",", 10), ",") + "]\n")
	}
	var cfg rootConfig
	err := config.Load(&cfg, config.Options{Path: file(t, b.String()+"store: {brokers: *t}\n")})
	require.ErrorContains(t, err, "unknown key a0")
}

func TestSecretsStayHidden(t *testing.T) {
	cfg := defaults()
	cfg.Store.URL = "postgres://me:s3cret@db/x"
	for _, style := range []config.Style{config.Commented, config.Plain} {
		var b bytes.Buffer
		require.NoError(t, config.WriteYAML(&b, &cfg, style))
		require.NotContains(t, b.String(), "s3cret")
		require.Contains(t, b.String(), `url: '***'`)
	}
}

func TestGolden(t *testing.T) {
	cfg := defaults()
	config.FillDefaults(&cfg)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"commented.yaml": func(b *bytes.Buffer) error { return config.WriteYAML(b, &cfg, config.Commented) },
		"plain.yaml":     func(b *bytes.Buffer) error { return config.WriteYAML(b, &cfg, config.Plain) },
		"reference.md":   func(b *bytes.Buffer) error { return config.WriteMarkdown(b, &cfg) },
	} {
		var b bytes.Buffer
		require.NoError(t, write(&b))
		path := filepath.Join("testdata", name)
		if *update {
			require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), b.String(), "run go test ./internal/config -update and check the diff")
	}
}

func TestWrittenFilesLoad(t *testing.T) {
	cfg := defaults()
	cfg.Router.Rules = []ruleConfig{{Model: "a: b, [c]", MaxCount: 2, MaxWait: time.Hour}, {MaxCount: 1, MaxWait: 90 * time.Second}}
	cfg.Store.Brokers = []string{"x y", "true", "12"}
	cfg.Store.Fallback = map[string]string{"big: 70b": "#1", "*": "'"}
	cfg.Store.TLS.CAFile = "a\nb"
	cfg.Router.WindowBytes = 1<<20 + 1
	for _, style := range []config.Style{config.Commented, config.Plain} {
		var b bytes.Buffer
		require.NoError(t, config.WriteYAML(&b, &cfg, style))
		var again rootConfig
		require.NoError(t, config.Load(&again, config.Options{Path: file(t, b.String())}), b.String())
		require.Equal(t, cfg, again)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	keys := map[string]config.Setting{}
	for _, s := range config.Describe(&rootConfig{}) {
		keys[s.Key] = s
	}
	require.Len(t, keys, 14)
	require.Equal(t, "BATCHYARD_STORE_TLS_CA_FILE", keys["store.tls.ca_file"].Env)
	require.True(t, keys["store.url"].Secret)
	require.Equal(t, []string{"fast", "fair"}, keys["router.policy"].Enum)
}

// Whatever the file contains, Load returns settings within their bounds or errors
// of one line each, and the settings survive being written and read again.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"router: {window_count: 100}", "store:\n  brokers: [a, b]\n", "a: &a [*a]", "router:\n  rules:\n    - model: x\n", "\x00", "--- |\n x", "drain_timeout: 1d",
		"store: {fallback: {a: b}}", "? [a]\n: b", "router: !!binary x", "{{{{{{{{", "router: {ahead: 1e308}", "drain_timeout: 99999d",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, os.WriteFile(path, data, 0o600))
		var cfg rootConfig
		var err error
		fuzzing.Bound(t, len(data), func() {
			cfg = rootConfig{}
			err = config.Load(&cfg, config.Options{Path: path})
		})
		if err != nil {
			var all *config.Error
			require.ErrorAs(t, err, &all)
			for _, line := range all.Lines {
				require.NotContains(t, line, "\n")
				require.Less(t, len(line), 1000)
			}
			return
		}
		require.GreaterOrEqual(t, cfg.Router.WindowCount, 64)
		require.LessOrEqual(t, cfg.Router.Ahead, 8.0)
		require.GreaterOrEqual(t, cfg.Drain, time.Second)
		cfg.Store.URL = defaults().Store.URL // would be masked
		var b bytes.Buffer
		require.NoError(t, config.WriteYAML(&b, &cfg, config.Commented))
		require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
		var again rootConfig
		require.NoError(t, config.Load(&again, config.Options{Path: path}), b.String())
	})
}
