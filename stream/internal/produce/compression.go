package produce

import (
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"
)

// Compression returns the codec of a name in kafka.compression.
func Compression(name string) (kafka.Compression, error) {
	switch strings.ToLower(name) {
	case "none":
		return 0, nil
	case "lz4":
		return kafka.Lz4, nil
	case "snappy":
		return kafka.Snappy, nil
	case "zstd":
		return kafka.Zstd, nil
	case "gzip":
		return kafka.Gzip, nil
	}
	return 0, fmt.Errorf("unknown kafka.compression %q: use none, lz4, snappy, zstd or gzip", name)
}
