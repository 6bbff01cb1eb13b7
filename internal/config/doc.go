// Package config reads settings into structs, strictly.
//
// A setting is declared once: as a field of the struct of the package that uses
// it, with its name, default, unit, bounds and meaning in the field's tags:
//
//	WindowCount int `yaml:"window_count" default:"4096" unit:"tasks" min:"64" max:"1000000" doc:"Tasks held in memory."`
//
// Everything else is made from these tags: [Load] reads a YAML file, environment
// variables and overrides, in this order; [FillDefaults] serves programs that
// make a struct in Go; [WriteYAML] and [WriteMarkdown] write the documentation.
//
// A struct without a yaml tag of its own fields is a section; its doc tag says
// what it is about. Types: string, bool, int, int64, float64, time.Duration,
// []string, map[string]string, structs, and slices of structs. unit:"bytes" takes
// sizes such as 4MiB. enum:"a,b" lists the values of a string. secret:"true" is
// never printed. live:"true" says that processes take over a change in the file
// while they run: [Watch] tells of one, [Changes] what it is, [Adopt] takes it.
// yaml:"-" is no setting.
//
// Everything that is wrong is told at once, a line each, with the line of the
// file, and the nearest name for a key that does not exist.
package config
