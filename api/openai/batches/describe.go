package batches

import (
	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/task"
)

// Patterns of texts in the description: any without control characters, and any without the one that Postgres cannot store.
const (
	plainText  = `^[^\x00-\x1f\x7f]*$`
	storedText = `^[^\x00]*$`
)

// closed is an object without other members.
func closed(required []string, members map[string]*huma.Schema) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false, Required: required, Properties: members}
}

func uploadSchema() *huma.Schema {
	return closed([]string{"purpose", "file"}, map[string]*huma.Schema{
		"purpose": oneOf("batch"),
		"file":    {Type: huma.TypeString, Format: "binary", Description: "One request a line."},
	})
}

func createSchema() *huma.Schema {
	endpoints := make([]any, len(task.Endpoints))
	for i, e := range task.Endpoints {
		endpoints[i] = e
	}
	return closed([]string{"input_file_id", "endpoint", "completion_window"}, map[string]*huma.Schema{
		"input_file_id":     {Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(task.MaxIDLength), Pattern: plainText},
		"endpoint":          oneOf(endpoints...),
		"completion_window": {Type: huma.TypeString, Pattern: `^[1-9][0-9]{0,2}[smh]$`, Description: "A duration, such as 24h or 90m. Compound ones, such as 1h30m, are taken as well."},
		"metadata": {Type: huma.TypeObject, MaxProperties: ptr(maxPairs), AdditionalProperties: &huma.Schema{Type: huma.TypeString, MaxLength: ptr(maxPairValue), Pattern: storedText},
			Extensions: map[string]any{"propertyNames": &huma.Schema{MaxLength: ptr(maxPairName), Pattern: storedText}}},
		"output_expires_after": closed([]string{"anchor", "seconds"}, map[string]*huma.Schema{"anchor": oneOf("created_at"), "seconds": whole(minSeconds, maxSeconds)}),
		"skip_bad_lines":       {Type: huma.TypeBoolean, Description: "Run the valid lines of a file that has bad ones, too. OpenAI's API does not have it."},
	})
}
