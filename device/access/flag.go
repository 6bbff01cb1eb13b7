package access

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/batchyard/batchyard/task"
)

// Syntax describes what [Parse] reads, for help texts.
const Syntax = `NAME=URL[,option=value]…; options: model, alias=NAME=OWN, tag, slots, weight, base_path, key_env, key_file, header=NAME:VALUE, ca_file, cert_file, cert_key_file, server_name, engine`

// Parse reads a device from one word of the command line: NAME=URL, and after commas the same settings as in the
// configuration file. Those that are lists are repeated. slots is what the device has if the word does not say it.
func Parse(word string, slots int) (Device, error) {
	name, rest, ok := strings.Cut(word, "=")
	base, options, _ := strings.Cut(rest, ",")
	if !ok || name == "" || base == "" {
		return Device{}, errors.New("write NAME=URL, such as gpu-1=http://10.0.0.5:8000")
	}
	d := Device{Name: name, URL: base}
	for _, option := range strings.Split(options, ",") {
		if option == "" {
			continue
		}
		key, value, ok := strings.Cut(option, "=")
		if !ok || value == "" {
			return d, fmt.Errorf("%q: write option=value after each comma; a comma inside a value needs the configuration file", option)
		}
		if err := d.set(key, value); err != nil {
			return d, err
		}
	}
	if d.Slots == 0 {
		d.Slots = slots
	}
	d = d.WithDefaults()
	var fe *task.FieldError
	switch err := d.check(); {
	case errors.As(err, &fe):
		return d, fmt.Errorf("%s: %s: %s", strings.Replace(fe.Field, "device_id", "the name", 1), fe.Problem, fe.Remedy)
	case err != nil:
		return d, err
	}
	return d, nil
}

// set sets one option.
func (d *Device) set(key, value string) error {
	texts := map[string]*string{
		"base_path": &d.BasePath, "key_env": &d.KeyEnv, "key_file": &d.KeyFile, "ca_file": &d.CAFile, "cert_file": &d.CertFile,
		"cert_key_file": &d.CertKey, "server_name": &d.ServerName, "engine": &d.Engine,
	}
	if p := texts[key]; p != nil {
		*p = value
		return nil
	}
	var err error
	switch key {
	case "model":
		d.Models = append(d.Models, value)
	case "tag":
		d.Tags = append(d.Tags, value)
	case "slots":
		if d.Slots, err = strconv.Atoi(value); err != nil || d.Slots < 1 {
			return fmt.Errorf("slots=%s: write a number above 0", value)
		}
	case "weight":
		if d.Weight, err = strconv.ParseFloat(value, 64); err != nil || d.Weight <= 0 {
			return fmt.Errorf("weight=%s: write a number above 0", value)
		}
	case "alias":
		return pair(&d.Aliases, "alias", value, "=", "alias=NAME=OWN, such as alias=gpt-4o-mini=llama-3.1-8b")
	case "header":
		return pair(&d.Headers, "header", value, ":", "header=NAME:VALUE")
	case "key", "api_key", "token", "password":
		return fmt.Errorf("option %s: a key on the command line is seen by everyone on the machine; write key_env=VARIABLE or key_file=PATH", key)
	default:
		return fmt.Errorf("unknown option %q: %s", key, Syntax)
	}
	return nil
}

func pair(into *map[string]string, key, value, by, write string) error {
	name, text, ok := strings.Cut(value, by)
	name, text = strings.TrimSpace(name), strings.TrimSpace(text)
	if !ok || name == "" || text == "" {
		return fmt.Errorf("%s=%s: write %s", key, value, write)
	}
	if *into == nil {
		*into = map[string]string{}
	}
	(*into)[name] = text
	return nil
}
