// Package config loads settings into structs and rejects everything it doesn't
// know.
//
// A setting is declared once, as a struct field in the package that uses it. The
// field's tags give its name, default, unit, bounds and meaning:
//
//	WindowCount int `yaml:"window_count" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Tasks held in memory."`
//
// Everything else follows from these tags. [Load] reads a YAML file, environment
// variables and overrides, in this order. [FillDefaults] is for programs that
// build a config struct in Go. [WriteYAML] and [WriteMarkdown] write the
// documentation.
//
// A field whose type is a struct is a section, and its doc tag describes it. The
// supported types are string, bool, int, int64, float64, time.Duration, []string,
// map[string]string, structs, and slices of structs. unit:"bytes" accepts sizes
// such as 4MiB. enum:"a,b" lists the valid values of a string. secret:"true" is
// never printed. live:"true" means that a running process applies a change of the
// file: [Watch] notices the change, [Changes] lists it, [Adopt] applies it. A field
// with yaml:"-" is not a setting.
//
// [Load] reports all problems at once, one per line, each with its line number in
// the file. For an unknown key it suggests the nearest one.
package config
