// Package murmur hashes keys as Kafka's Java client does.
package murmur

import "encoding/binary"

// Hash is the hash with which Kafka's Java client, and so most others, assign keys to
// partitions: 32-bit MurmurHash2 with Kafka's seed.
func Hash(key string) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	b := []byte(key)
	h := uint32(seed) ^ uint32(len(b))
	for len(b) >= 4 {
		k := binary.LittleEndian.Uint32(b) * m
		k ^= k >> r
		h = h*m ^ k*m
		b = b[4:]
	}
	for i := len(b) - 1; i >= 0; i-- {
		h ^= uint32(b[i]) << (8 * i)
	}
	if len(b) > 0 {
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// Partition returns the partition of a key, of n.
func Partition(key string, n int) int32 {
	return int32((Hash(key) & 0x7fffffff) % uint32(n))
}
